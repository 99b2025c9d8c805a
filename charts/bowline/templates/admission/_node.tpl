{{/* A policy for what the node plugins write, with its binding. Argument: a dict of
the context (root), the name's end (name), rules and validations. The name of the
node is in the token of the pod that asks, and nobody can have one for another node
without being there. */}}
{{- define "bowline.nodePolicy" -}}
{{- $name := printf "%s-%s" (include "bowline.fullname" .root) .name -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: {{ $name }}
  labels:
    {{- include "bowline.componentLabels" (list .root "node") | nindent 4 }}
spec:
  failurePolicy: Fail
  matchConstraints:
    resourceRules:
      {{- toYaml .rules | nindent 6 }}
  matchConditions:
    - name: node-plugin
      expression: request.userInfo.username == 'system:serviceaccount:{{ .root.Release.Namespace }}:{{ include "bowline.fullname" .root }}-node'
  variables:
    - name: node
      expression: >-
        has(request.userInfo.extra) && 'authentication.kubernetes.io/node-name' in request.userInfo.extra ?
        request.userInfo.extra['authentication.kubernetes.io/node-name'][0] : ''
  validations:
    {{- toYaml .validations | nindent 4 }}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ $name }}
  labels:
    {{- include "bowline.componentLabels" (list .root "node") | nindent 4 }}
spec:
  policyName: {{ $name }}
  validationActions: [Deny]
{{- end -}}
