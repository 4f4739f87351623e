package endpoint

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
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
	if key, ok := standardKey(secret); ok {
		return key
	}
	return []byte(secret)
}

// CheckSecret tells in a sentence why a secret cannot be a channel's, "" if it can: receivers would decode one that only begins like those of Standard Webhooks,
// and check with another key.
func CheckSecret(secret string) string {
	if _, ok := standardKey(secret); strings.HasPrefix(secret, secretPrefix) && !ok {
		return fmt.Sprintf("A secret that begins with %s goes on with the base64 of %d to %d bytes.", secretPrefix, minKeyBytes, maxKeyBytes)
	}
	return ""
}

// standardKey is the key in a secret that has the form of Standard Webhooks.
func standardKey(secret string) (key []byte, ok bool) {
	encoded, ok := strings.CutPrefix(secret, secretPrefix)
	if !ok {
		return nil, false
	}
	key, err := base64.StdEncoding.DecodeString(encoded)
	return key, err == nil && len(key) >= minKeyBytes && len(key) <= maxKeyBytes
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
