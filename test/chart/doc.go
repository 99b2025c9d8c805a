// Package chart tests charts/bowline: rendered with Helm for many values and
// asserted, and installed into a real API server, where roles and admission
// policies are tried out. No pod runs here; package e2e has those.
package chart
