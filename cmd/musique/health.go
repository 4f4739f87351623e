package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/spf13/cobra"
)

// maxHealthBytes bounds what is read of a server's word on its health.
const maxHealthBytes = 1 << 10

func newHealth() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Tell whether a running server is ready, for health checks of containers",
		Long: `Tell whether a running server is ready: what /readyz of its ops address says. The exit code is 0 when it is, and 1 when it is not or nobody
answers. It needs no token, and reads the server's own settings, so in a server's container 'musique health' asks that server.`,
		Args: cobra.NoArgs,
	}
	return opsCommand(cmd, func(ctx context.Context, ops opsClient) error {
		ctx, cancel := context.WithTimeout(ctx, opsTimeout)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, ops.base+"/readyz", http.NoBody)
		if err != nil {
			return fmt.Errorf("--ops-addr: %w", err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return fmt.Errorf("no server at %s: %w", ops.base, err)
		}
		defer resp.Body.Close()
		said, err := io.ReadAll(io.LimitReader(resp.Body, maxHealthBytes))
		if err != nil {
			return err
		}
		word := strings.TrimSpace(string(said))
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", resp.Status, word)
		}
		raw, err := json.Marshal(map[string]string{"status": word})
		if err != nil {
			return err
		}
		return ops.print(cmd, raw, func(w io.Writer) { fmt.Fprintln(w, word) })
	})
}
