package endpoint

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	// secretPrefix stands before the base64 of a key.
	secretPrefix = "whsec_"
	// minKeyBytes and maxKeyBytes are the bounds that Standard Webhooks has for a key.
	minKeyBytes = 24
	maxKeyBytes = 64
	madeBytes   = 32
)

// The headers of a signed message.
const (
	IDHeader        = "Webhook-Id"
	TimestampHeader = "Webhook-Timestamp"
	SignatureHeader = "Webhook-Signature"
)

// NewSecret makes a secret that nobody can guess.
func NewSecret() string {
	raw := make([]byte, madeBytes)
	_, _ = rand.Read(raw) // documented never to fail
	return secretPrefix + base64.StdEncoding.EncodeToString(raw)
}

// Key is what a secret signs with: the bytes that the base64 after whsec_ stands for, if there are 24 to 64 of them, else those of the secret itself.
func Key(secret string) []byte {
	if encoded, ok := strings.CutPrefix(secret, secretPrefix); ok {
		if raw, err := base64.StdEncoding.DecodeString(encoded); err == nil && len(raw) >= minKeyBytes && len(raw) <= maxKeyBytes {
			return raw
		}
	}
	return []byte(secret)
}

// Sign gives a message its ID and the time of this attempt and, if there is a secret, the signature over both and the body.
func Sign(h http.Header, secret, id string, at time.Time, body []byte) {
	seconds := strconv.FormatInt(at.Unix(), 10)
	h.Set(IDHeader, id)
	h.Set(TimestampHeader, seconds)
	if secret == "" {
		return
	}
	mac := hmac.New(sha256.New, Key(secret))
	mac.Write([]byte(id + "." + seconds + "."))
	mac.Write(body)
	h.Set(SignatureHeader, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
}
