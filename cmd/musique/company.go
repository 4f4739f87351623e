package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// opsSettings are what a command needs to reach a running server's ops address.
var opsSettings = []setting{
	{"ops-addr", "MUSIQUE_OPS_ADDR", "127.0.0.1:9090", "the server's ops address, host:port or an https:// URL"},
	{"ops-token", "MUSIQUE_OPS_TOKEN", "", "bearer token of the ops address, needed where it is not loopback; prefer the variable, since flags show in process lists"},
}

// opsTimeout bounds one request to the ops address.
const opsTimeout = 30 * time.Second

// maxOpsAnswerBytes bounds what is read of one answer.
const maxOpsAnswerBytes = 16 << 20

func newCompany() *cobra.Command {
	company := &cobra.Command{
		Use:   "company",
		Short: "Create and manage companies (partners) on a running server",
	}
	return choose(company, companyCreate(), companyList(), companyRotate(), companySetPlan(), companySuspend())
}

func companyCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create --name NAME [--plan PLAN] [--prefix PREFIX]",
		Short: "Create a company and print its company token, which is shown this once",
		Example: `  musique company create --name "Coffee & Co"
  musique company create --name Acme --plan unlimited --output json`,
		Args: cobra.NoArgs,
	}
	name := cmd.Flags().String("name", "", "the company's name (required)")
	plan := cmd.Flags().String("plan", "standard", "standard, plus, unlimited, or a plan of the configuration file")
	prefix := cmd.Flags().String("prefix", "msk", "what the company's API tokens begin with")
	return opsCommand(cmd, func(ctx context.Context, ops opsClient) error {
		if *name == "" {
			return errors.New("--name is required")
		}
		var made struct {
			CompanyID    string `json:"companyId"`
			CompanyToken string `json:"companyToken"`
		}
		raw, err := ops.call(ctx, http.MethodPost, "/ops/companies", map[string]string{"name": *name, "plan": *plan, "prefix": *prefix}, &made)
		if err != nil {
			return err
		}
		return ops.print(cmd, raw, func(w io.Writer) {
			fmt.Fprintf(w, "Company       %s\nCompany token %s\n\nKeep the token now: it is stored only as a hash and is not shown again.\n", made.CompanyID, made.CompanyToken)
		})
	})
}

func companyList() *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "List the companies", Args: cobra.NoArgs}
	return opsCommand(cmd, func(ctx context.Context, ops opsClient) error {
		var companies []struct {
			CompanyID string    `json:"companyId"`
			Name      string    `json:"name"`
			Plan      string    `json:"plan"`
			Suspended bool      `json:"suspended"`
			CreatedAt time.Time `json:"createdAt"`
		}
		raw, err := ops.call(ctx, http.MethodGet, "/ops/companies", nil, &companies)
		if err != nil {
			return err
		}
		return ops.print(cmd, raw, func(w io.Writer) {
			table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "COMPANY\tNAME\tPLAN\tSTATE\tCREATED")
			for _, c := range companies {
				state := "active"
				if c.Suspended {
					state = "suspended"
				}
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", c.CompanyID, c.Name, c.Plan, state, c.CreatedAt.Format(time.RFC3339))
			}
			_ = table.Flush() // w is the terminal: nothing to do about a failed write
		})
	})
}

func companyRotate() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate-token COMPANY_ID",
		Short: "Give a company a new company token; the old one is refused from then on",
		Args:  cobra.ExactArgs(1),
	}
	return opsCommand(cmd, func(ctx context.Context, ops opsClient) error {
		var made struct {
			CompanyToken string `json:"companyToken"`
		}
		raw, err := ops.call(ctx, http.MethodPost, companyPath(cmd, "rotate-token"), nil, &made)
		if err != nil {
			return err
		}
		return ops.print(cmd, raw, func(w io.Writer) {
			fmt.Fprintf(w, "Company token %s\n\nKeep the token now: it is stored only as a hash and is not shown again.\n", made.CompanyToken)
		})
	})
}

func companySetPlan() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set-plan COMPANY_ID --plan PLAN",
		Short: "Move a company to another plan",
		Args:  cobra.ExactArgs(1),
	}
	plan := cmd.Flags().String("plan", "", "standard, plus, unlimited, or a plan of the configuration file (required)")
	return opsCommand(cmd, func(ctx context.Context, ops opsClient) error {
		if *plan == "" {
			return errors.New("--plan is required")
		}
		raw, err := ops.call(ctx, http.MethodPost, companyPath(cmd, "set-plan"), map[string]string{"plan": *plan}, nil)
		if err != nil {
			return err
		}
		return ops.print(cmd, raw, func(w io.Writer) { fmt.Fprintln(w, "Plan changed to", *plan) })
	})
}

func companySuspend() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "suspend COMPANY_ID",
		Short: "Suspend a company: all its tokens are refused from then on",
		Args:  cobra.ExactArgs(1),
	}
	reason := cmd.Flags().String("reason", "", "why, for the event history")
	return opsCommand(cmd, func(ctx context.Context, ops opsClient) error {
		raw, err := ops.call(ctx, http.MethodPost, companyPath(cmd, "suspend"), map[string]string{"reason": *reason}, nil)
		if err != nil {
			return err
		}
		return ops.print(cmd, raw, func(w io.Writer) { fmt.Fprintln(w, "Suspended") })
	})
}

func companyPath(cmd *cobra.Command, action string) string {
	return "/ops/companies/" + url.PathEscape(cmd.Flags().Arg(0)) + "/" + action
}

// opsCommand makes cmd one that talks to the ops address: the settings for it, --output, and run with a client.
func opsCommand(cmd *cobra.Command, run func(context.Context, opsClient) error) *cobra.Command {
	bindSettings(cmd, opsSettings)
	output := cmd.Flags().String("output", "text", "text or json")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *output != "text" && *output != "json" {
			return fmt.Errorf("--output is text or json, not %q", *output)
		}
		if _, err := resolveSettings(cmd, opsSettings, serveSections()...); err != nil {
			return err
		}
		address, _ := cmd.Flags().GetString("ops-addr")
		token, _ := cmd.Flags().GetString("ops-token")
		return run(cmd.Context(), newOpsClient(address, token, *output))
	}
	return cmd
}

// opsClient speaks to the ops address of a running server.
type opsClient struct {
	base, token, output string
}

func newOpsClient(address, token, output string) opsClient {
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	return opsClient{base: strings.TrimSuffix(address, "/"), token: token, output: output}
}

// call sends one request and decodes the answer's data into out (unless nil). It returns the data as it came.
func (c opsClient) call(ctx context.Context, method, path string, body, out any) (json.RawMessage, error) {
	var payload io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		payload = bytes.NewReader(raw)
	}
	ctx, cancel := context.WithTimeout(ctx, opsTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, payload)
	if err != nil {
		return nil, fmt.Errorf("--ops-addr: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("no server at %s: is 'musique serve' running? (%w)", c.base, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxOpsAnswerBytes))
	if err != nil {
		return nil, err
	}
	var answer struct {
		Data  json.RawMessage `json:"data"`
		Error *struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return nil, fmt.Errorf("%s %s answered %s, which is not the ops API", method, c.base+path, resp.Status)
	}
	if answer.Error != nil {
		return nil, fmt.Errorf("%s (%s)", answer.Error.Message, answer.Error.Code)
	}
	if out != nil {
		if err := json.Unmarshal(answer.Data, out); err != nil {
			return nil, fmt.Errorf("%s %s: %w", method, path, err)
		}
	}
	return answer.Data, nil
}

// print writes the answer as the caller asked: its data as JSON, or text for people.
func (c opsClient) print(cmd *cobra.Command, raw json.RawMessage, text func(io.Writer)) error {
	if c.output == "json" {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), string(raw))
		return err
	}
	text(cmd.OutOrStdout())
	return nil
}
