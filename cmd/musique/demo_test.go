package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A company token that is refused is not offered to newcomers: the demo company's is shown as long as it is the one that holds.
func TestARotatedDemoTokenIsNotShown(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	serve := append([]string{"serve", "--data-dir", dir}, freePorts...)
	s := launch(t, serve...)
	token := s.awaits(&s.stdout, `Its company token:\n\n  (comp_\S+)\n`)[1]
	ops := s.awaits(&s.stdout, `Operators +http://(\S+)/metrics`)[1]
	companies := operator[[]struct{ CompanyID string }](&server{process: s, ops: ops}, "company", "list")
	require.Len(t, companies, 1)
	operator[companyMade](&server{process: s, ops: ops}, "company", "rotate-token", companies[0].CompanyID)
	s.terminate()

	s = launch(t, serve...)
	s.awaits(&s.stdout, `(?s)is ready\..*Kafka +\S+\n\n`)
	s.terminate()
	require.NotContains(t, s.stdout.String(), token)
}

// The demo company stays the one that it is when the secret key is rotated. Its token is shown as long as its secret key is there.
func TestTheDemoOutlivesItsSecretKey(t *testing.T) {
	t.Parallel()
	older, newer := strings.Repeat("a1", 32), strings.Repeat("b2", 32)
	serve := append([]string{"serve", "--data-dir", filepath.Join(t.TempDir(), "data")}, freePorts...)
	token := ""
	for _, ring := range []string{older, newer + "," + older, newer} {
		s := launch(t, append(serve, "--secret-key", ring)...)
		s.awaits(&s.stdout, `(?s)is ready\..*Kafka +\S+\n\n`)
		if token == "" {
			token = s.awaits(&s.stdout, `Its company token:\n\n  (comp_\S+)\n`)[1]
		}
		ops := s.awaits(&s.stdout, `Operators +http://(\S+)/metrics`)[1]
		require.Len(t, operator[[]object](&server{process: s, ops: ops}, "company", "list"), 1)
		s.terminate()
		require.Equal(t, strings.Contains(ring, older), strings.Contains(s.stdout.String(), token))
	}
}
