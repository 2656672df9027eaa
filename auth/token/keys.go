package token

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// The algorithms.
const (
	EdDSA = "EdDSA" // Ed25519
	ES256 = "ES256"
	RS256 = "RS256"
	HS256 = "HS256"
)

const (
	// maxKeys is how many keys are tried for a token that does not name its own, and how many there may be at all: keys
	// in use and those that come or go, not a directory.
	maxKeys = 32
	// minSecret is the shortest secret of HS256, in bytes: that of its hash (RFC 7518, 3.2).
	minSecret = 32
	// minRSA and maxRSA bound the modulus of an RSA key, in bits (RFC 7518, 3.3; larger ones cost more than they give).
	minRSA, maxRSA = 2048, 8192
)

// Key verifies signatures of one algorithm.
type Key struct {
	id        string // "" serves tokens with any id
	algorithm string
	key       any
}

// Algorithm is the one that the key serves.
func (k Key) Algorithm() string { return k.algorithm }

// newKey takes a public key, or a secret of HS256 as []byte.
func newKey(id string, key any) (Key, error) {
	switch k := key.(type) {
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return Key{}, errors.New("an Ed25519 key of a wrong size")
		}
		return Key{id, EdDSA, k}, nil
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return Key{}, fmt.Errorf("a key on the curve %s; ES256 takes P-256", k.Curve.Params().Name)
		}
		return Key{id, ES256, k}, nil
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits < minRSA || bits > maxRSA {
			return Key{}, fmt.Errorf("an RSA key of %d bits; must have %d to %d", bits, minRSA, maxRSA)
		}
		return Key{id, RS256, k}, nil
	case []byte:
		if len(k) < minSecret {
			return Key{}, fmt.Errorf("a secret of %d bytes; HS256 takes at least %d", len(k), minSecret)
		}
		return Key{id, HS256, k}, nil
	}
	return Key{}, fmt.Errorf("a key of type %T", key)
}

// ParsePublicKeys reads the PEM blocks PUBLIC KEY, RSA PUBLIC KEY and CERTIFICATE (for its key; its dates do not matter).
// A file may hold several: all are good, which is how keys are rotated. A private key is an error: it has no business here.
func ParsePublicKeys(text []byte) ([]Key, error) {
	var keys []Key
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		var public any
		var err error
		switch block.Type {
		case "PUBLIC KEY":
			public, err = x509.ParsePKIXPublicKey(block.Bytes)
		case "RSA PUBLIC KEY":
			public, err = x509.ParsePKCS1PublicKey(block.Bytes)
		case "CERTIFICATE":
			var c *x509.Certificate
			if c, err = x509.ParseCertificate(block.Bytes); err == nil {
				public = c.PublicKey
			}
		default:
			return nil, fmt.Errorf("a PEM block %q; verifying takes public keys", block.Type)
		}
		if err != nil {
			return nil, fmt.Errorf("PEM block %q: %w", block.Type, err)
		}
		key, err := newKey("", public)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	switch {
	case len(keys) == 0:
		return nil, errors.New("no PEM block with a public key")
	case len(bytes.TrimSpace(text)) > 0:
		return nil, errors.New("something after the last PEM block")
	}
	return keys, nil
}

// ParseSecret reads a secret of HS256: all bytes as they are, less one newline at the end. What looks like PEM is an error:
// a public key is no secret.
func ParseSecret(text []byte) (Key, error) {
	if bytes.Contains(text, []byte("-----BEGIN ")) {
		return Key{}, errors.New("a PEM file; HS256 takes a secret that only those who make tokens know")
	}
	return newKey("", bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r")))
}
