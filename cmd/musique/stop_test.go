package main

import (
	"net/http"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A client that stalls amid its request does not keep a server from stopping in order: it is cut off, and what was served is recorded.
func TestStopWithAStalledClient(t *testing.T) {
	t.Parallel()
	s := serveOn(t, filepath.Join(t.TempDir(), "data"))
	made := operator[companyMade](s, "company", "create", "--name", "Acme")
	partner := s.signIn(t, made.CompanyToken, "store_001")
	contentType, body := uploadForm(t, "Welcome", welcome(t))
	conn, _ := partner.beginUpload(contentType, len(body))
	_, err := conn.Write(body[:len(body)/2])
	require.NoError(t, err)
	require.NoError(t, s.Process.Signal(syscall.SIGTERM))
	require.Equal(t, 0, s.exit(), "%s", s.stderr.String())
	require.Contains(t, s.stderr.String(), "their clients are cut off")
}

// A process that serves no partners has its probes and metrics all the same.
func TestWorkersHaveAnOpsAddress(t *testing.T) {
	t.Parallel()
	p := launch(t, append([]string{"serve", "--roles", "projections,delivery", "--data-dir", filepath.Join(t.TempDir(), "data"), "--log-format", "json"}, freePorts...)...)
	ops := p.awaits(&p.stderr, `"msg":"ready","http":"","ops":"([^"]+)"`)[1]
	for _, path := range []string{"/livez", "/readyz", "/metrics"} {
		resp, err := http.Get("http://" + ops + path)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, http.StatusOK, resp.StatusCode, path)
	}
	p.terminate()
}
