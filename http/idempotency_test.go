package httpapi

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/fault"
)

func TestIdempotencyKeysAreChecked(t *testing.T) {
	for name, test := range map[string]struct {
		values []string
		key    string
		code   fault.Code
	}{
		"none":        {nil, "", ""},
		"one":         {[]string{"order-77"}, "order-77", ""},
		"the longest": {[]string{strings.Repeat("k", 255)}, strings.Repeat("k", 255), ""},
		"too long":    {[]string{strings.Repeat("k", 256)}, "", fault.OutOfRange},
		"empty":       {[]string{""}, "", fault.OutOfRange},
		"two":         {[]string{"a", "b"}, "", fault.InvalidFormat},
		"control":     {[]string{"a\tb"}, "", fault.InvalidFormat},
		"not ASCII":   {[]string{"é"}, "", fault.InvalidFormat},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := idempotencyKey(http.Header{"Idempotency-Key": test.values})
			require.Equal(t, test.key, key)
			if test.code == "" {
				require.NoError(t, err)
				return
			}
			require.Equal(t, test.code, fault.CodeOf(err))
		})
	}
}
