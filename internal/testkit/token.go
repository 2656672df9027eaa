package testkit

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Audience is the audience of an [Issuer]'s tokens.
const Audience = "commitcast-test"

// Issuer makes tokens, as an identity provider does: with a key of its own, EdDSA, and nothing but the standard library.
type Issuer struct {
	PEM []byte // its public key
	key ed25519.PrivateKey
}

// NewIssuer makes an issuer.
func NewIssuer(t testing.TB) *Issuer {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return &Issuer{pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), private}
}

// File is a file with the public key.
func (i *Issuer) File(t testing.TB) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "issuer.pem")
	if err := os.WriteFile(name, i.PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// JWK is the public key as one of a JWK Set.
func (i *Issuer) JWK(id string) map[string]any {
	return map[string]any{"kty": "OKP", "crv": "Ed25519", "use": "sig", "kid": id,
		"x": base64.RawURLEncoding.EncodeToString(i.key.Public().(ed25519.PublicKey))}
}

// Token is one for a subject that allows topics, good for an hour. claims change or add to what it says.
func (i *Issuer) Token(subject string, topics []string, claims map[string]any) string {
	all := map[string]any{"sub": subject, "aud": Audience, "exp": time.Now().Add(time.Hour).Unix(), "topics": topics}
	maps.Copy(all, claims)
	body, err := json.Marshal(all)
	if err != nil {
		panic(err) // what a test wrote cannot be JSON
	}
	text := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"EdDSA","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString(body)
	return text + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(i.key, []byte(text)))
}
