package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
)

func TestSign(t *testing.T) {
	ca, err := NewAuthority("authority")
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewAuthority("authority")
	if err != nil {
		t.Fatal(err)
	}
	server := sign(t, ca, Request{Name: "server", Hosts: []string{"127.0.0.1", "kubernetes.default"}})
	client := sign(t, ca, Request{Name: "admin", Organizations: []string{"system:masters"}})

	serverAuth := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	clientAuth := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for _, c := range []struct {
		what  string
		cert  *x509.Certificate
		roots *Authority
		host  string
		usage []x509.ExtKeyUsage
		good  bool
	}{
		{"the server by address", server, ca, "127.0.0.1", serverAuth, true},
		{"the server by name", server, ca, "kubernetes.default", serverAuth, true},
		{"the server by another name", server, ca, "kubernetes", serverAuth, false},
		{"the server as a client", server, ca, "", clientAuth, true},
		{"the client", client, ca, "", clientAuth, true},
		{"the client as a server", client, ca, "", serverAuth, false},
		{"a client of another authority", client, other, "", clientAuth, false},
	} {
		roots := x509.NewCertPool()
		roots.AddCert(c.roots.cert)
		_, err := c.cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: c.host, KeyUsages: c.usage})
		if (err == nil) != c.good {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if client.Subject.CommonName != "admin" || client.Subject.Organization[0] != "system:masters" {
		t.Errorf("the client is %v", client.Subject)
	}
}

func sign(t *testing.T, a *Authority, r Request) *x509.Certificate {
	t.Helper()
	pair, err := a.Sign(r)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(pair.Cert)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestWrite(t *testing.T) {
	ca, err := NewAuthority("authority")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Pair()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := pair.Write(dir, "ca"); err != nil {
		t.Fatal(err)
	}
	if _, err := tls.LoadX509KeyPair(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")); err != nil {
		t.Error(err)
	}
	info, err := os.Stat(filepath.Join(dir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("others may read the key: %v", info.Mode())
	}
}
