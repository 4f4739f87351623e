package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func newProjections() *cobra.Command {
	cmd := &cobra.Command{Use: "projections", Short: "Look at the projections of a running server"}
	return choose(cmd, projectionsStatus())
}

func projectionsStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Each projection's position in the event store, how far behind it is, and what stopped it",
		Args:  cobra.NoArgs,
	}
	return opsCommand(cmd, func(ctx context.Context, ops opsClient) error {
		var projections []struct {
			Name     string `json:"name"`
			Position uint64 `json:"position"`
			Lag      uint64 `json:"lag"`
			Error    string `json:"error"`
		}
		raw, err := ops.call(ctx, http.MethodGet, "/ops/projections", nil, &projections)
		if err != nil {
			return err
		}
		return ops.print(cmd, raw, func(w io.Writer) {
			table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "PROJECTION\tPOSITION\tLAG\tERROR")
			for _, p := range projections {
				fmt.Fprintf(table, "%s\t%d\t%d\t%s\n", p.Name, p.Position, p.Lag, p.Error)
			}
			_ = table.Flush() // w is the terminal: nothing to do about a failed write
		})
	})
}
