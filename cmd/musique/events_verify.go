package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/musique/musique/domain/event"
	"github.com/musique/musique/infra/eventstore"
	"github.com/musique/musique/infra/translog"
)

// What 'events verify' exits with beside 0 (sysexits.h): EX_DATAERR where the history or the heads were changed, EX_UNAVAILABLE where it cannot tell.
const (
	exitTampered   = 65
	exitCannotTell = 69
)

// maxGivenBytes bounds the files of proofs and heads that are read; it is more than a file of heads has that the server writes.
const maxGivenBytes = 8 << 20

// historySettings are what a command needs to find the signed heads of the event history.
var historySettings = []setting{
	{"data-dir", "MUSIQUE_DATA_DIR", "./data", "the server's data folder"},
	headsSetting,
	headsKeySetting,
}

// bindHistory makes cmd one that looks at signed heads.
func bindHistory(cmd *cobra.Command, settings []setting) (keys *[]string) {
	bindSettings(cmd, settings)
	return cmd.Flags().StringArray("key", nil,
		"a verifier key that heads are believed by, or a file of such keys, one a line; may be repeated (default: the .pub file beside the signing key)")
}

// resolveHistory gives the folder of the heads and the verifier keys.
func resolveHistory(cmd *cobra.Command, settings []setting, given []string) (dir string, keys []string, err error) {
	if _, err := resolveSettings(cmd, settings, serveSections()...); err != nil {
		return "", nil, err
	}
	get := func(name string) string {
		v, _ := cmd.Flags().GetString(name) // all settings are declared as strings
		return v
	}
	dir, keyFile := headsIn(get("data-dir"), get("heads"), get("heads-key"))
	for _, key := range given {
		if _, err := os.Stat(key); err != nil {
			keys = append(keys, key)
			continue
		}
		lines, err := translog.ReadPublicKeys(key)
		if err != nil {
			return "", nil, fmt.Errorf("--key: %w", err)
		}
		keys = append(keys, lines...)
	}
	if len(keys) == 0 {
		if keys, err = translog.ReadPublicKeys(translog.PublicKeysFile(keyFile)); err != nil {
			return "", nil, exitError{fmt.Errorf("no verifier key: give --key (%w)", err), exitCannotTell}
		}
	}
	return dir, keys, nil
}

func printJSON(w io.Writer, result any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(result)
}

// printer writes a result as the caller asked.
type printer struct{ output string }

func (p printer) print(cmd *cobra.Command, result any, text func(io.Writer)) error {
	if p.output == "json" {
		return printJSON(cmd.OutOrStdout(), result)
	}
	text(cmd.OutOrStdout())
	return nil
}

func eventsVerify() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check that no recorded event was changed, removed, added or moved since it was signed",
		Long: `Read the event store from its first event on and compare it with the signed heads that are kept of it outside the store
(docs/tamper-evidence.md). What differs is named.

With --proof it checks a proof that 'musique events prove' made instead, and needs neither the store nor the folder.

Exit status: 0 nothing differs; 65 the history or what is kept of it was changed; 69 it cannot be told, because the store
is away, no head is there that one of the keys signed, a file that --head names has one that none of them signed, or too
much of the folder is lost; 1 anything else.`,
		Example: `  musique events verify
  musique events verify --heads /mnt/copy/heads --key /mnt/copy/heads.pub --output json
  musique events verify --head checkpoint-of-last-month
  musique events verify --proof proof.json --key 'musique/events/1f…+a1b2c3d4+AX…'`,
		Args: cobra.NoArgs,
	}
	settings := slices.Concat(historySettings, eventStoreSettings)
	given := bindHistory(cmd, settings)
	output := cmd.Flags().String("output", "text", "text or json")
	heads := cmd.Flags().StringArray("head", nil, "a file of heads that was kept elsewhere; may be repeated")
	proof := cmd.Flags().String("proof", "", "a file that 'musique events prove' made")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *output != "text" && *output != "json" {
			return fmt.Errorf("--output is text or json, not %q", *output)
		}
		dir, keys, err := resolveHistory(cmd, settings, *given)
		if err != nil {
			return err
		}
		var copies [][]byte
		for _, file := range *heads {
			raw, err := readBounded(file)
			if err != nil {
				return fmt.Errorf("--head: %w", err)
			}
			copies = append(copies, raw)
		}
		if *proof != "" {
			return checkProof(cmd, printer{*output}, *proof, copies, keys)
		}
		return verifyHistory(cmd, printer{*output}, translog.VerifyConfig{Dir: dir, Keys: keys, Copies: copies, Retained: retained(), Now: time.Now()})
	}
	return cmd
}

func readBounded(file string) ([]byte, error) {
	opened, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	raw, err := io.ReadAll(io.LimitReader(opened, maxGivenBytes+1))
	if err == nil && len(raw) > maxGivenBytes {
		err = fmt.Errorf("%s is larger than %d bytes", file, maxGivenBytes)
	}
	return raw, err
}

func verifyHistory(cmd *cobra.Command, out printer, config translog.VerifyConfig) error {
	address, _ := cmd.Flags().GetString("eventstore")
	if address == embedded {
		listen, _ := cmd.Flags().GetString("eventstore-listen")
		address = "esdb://" + listen + "?tls=false"
	}
	store, err := eventstore.Open(address, slog.New(slog.DiscardHandler))
	if err != nil {
		return fmt.Errorf("--eventstore: %w", err)
	}
	defer store.Close() // it always returns nil
	config.Source = patientSource(store.History)
	shown := &verifyProgress{out: cmd.ErrOrStderr(), last: time.Now()}
	shown.terminal = isTerminal(shown.out)
	config.Progress = shown.show
	report, err := translog.Verify(cmd.Context(), config)
	shown.end()
	if errors.Is(err, eventstore.ErrUnavailable) {
		return exitError{fmt.Errorf("the history cannot be verified: %w", err), exitCannotTell}
	}
	if err != nil {
		return err
	}
	if err := out.print(cmd, report, func(w io.Writer) { printReport(w, report) }); err != nil {
		return err
	}
	switch report.Verdict {
	case translog.Verified:
		return nil
	case translog.CannotTell:
		reason := "it cannot be told whether the history is what was signed: the warnings say what is missing"
		if report.Heads == 0 {
			reason = "no head is kept that one of the keys signed, so there is nothing to compare the history with"
		}
		return exitError{errors.New(reason), exitCannotTell}
	default:
		return exitError{errors.New("the history is not what was signed"), exitTampered}
	}
}

// patientSource reads on where the store was away for a while, once it was there.
func patientSource(read translog.Source) translog.Source {
	return func(ctx context.Context, from event.Position, limit int) (events []eventstore.Raw, done bool, err error) {
		for began := time.Now(); ; {
			events, done, err = read(ctx, from, limit)
			if from.IsZero() || !errors.Is(err, eventstore.ErrUnavailable) || time.Since(began) > patienceWithServer {
				return events, done, err
			}
			select {
			case <-time.After(watchEvery):
			case <-ctx.Done():
				return nil, false, ctx.Err()
			}
		}
	}
}

func printReport(w io.Writer, r translog.Report) {
	fmt.Fprintf(w, "History   %s\nHeads     %d, the newest of %d events\nProven    %d events are what was signed\n", r.Origin, r.Heads, r.Size, r.Proven)
	if r.Expired > 0 {
		fmt.Fprintf(w, "Expired   %d of them are usage that the event store may forget by now, and has\n", r.Expired)
	}
	fmt.Fprintf(w, "Uncovered %d newer events are in no head yet\n", r.Uncovered)
	for _, warning := range r.Warnings {
		fmt.Fprintln(w, "Warning  ", warning)
	}
	for _, evidence := range r.Evidence {
		fmt.Fprintln(w, "Heads and hashes:", evidence)
	}
	for _, d := range r.Differences {
		fmt.Fprintln(w, describe(d))
	}
	if r.More > 0 {
		fmt.Fprintf(w, "and %d more\n", r.More)
	}
	fmt.Fprintf(w, "\nVerdict: %s\n", r.Verdict)
}

// describe tells a difference in a line.
func describe(d translog.Difference) string {
	text := d.Kind + ":"
	switch {
	case d.Event != nil:
		text += " " + d.Event.String()
	case d.Found != nil:
		text += " " + d.Found.String()
	}
	if d.Kind == translog.Reordered && d.Found != nil {
		text += fmt.Sprintf(", now at position %d", d.Found.Position)
	}
	if len(d.Fields) > 0 {
		text += fmt.Sprintf(" (%v)", d.Fields)
	}
	if d.Detail != "" {
		text += " " + d.Detail
	}
	return text
}

// verifyProgress shows how far a verification is: a line that changes on a terminal, and one now and then otherwise.
type verifyProgress struct {
	out      io.Writer
	terminal bool
	last     time.Time
	shown    bool
}

func (p *verifyProgress) show(stage string, done, of uint64) {
	pause := lineEvery
	if p.terminal {
		pause = watchEvery
	}
	if time.Since(p.last) < pause || of == 0 {
		return
	}
	p.last, p.shown = time.Now(), true
	line := fmt.Sprintf("%s: %d of %d events, %.1f %%", stage, done, of, 100*float64(done)/float64(of))
	if p.terminal {
		fmt.Fprintf(p.out, "\r%-70s", line)
		return
	}
	fmt.Fprintln(p.out, line)
}

func (p *verifyProgress) end() {
	if p.shown && p.terminal {
		fmt.Fprintln(p.out)
	}
}

// proofResult is what the check of a proof says.
type proofResult struct {
	Verdict string          `json:"verdict"`
	Kind    string          `json:"kind"`
	Size    uint64          `json:"size"`
	From    *uint64         `json:"from,omitempty"`
	Index   *uint64         `json:"index,omitempty"`
	Event   *translog.Named `json:"event,omitempty"`
}

// checkProof checks a proof with nothing but the keys. A head that is given takes the place of the one in the proof: it was kept elsewhere, and that one was not.
func checkProof(cmd *cobra.Command, out printer, file string, copies [][]byte, keys []string) error {
	raw, err := readBounded(file)
	if err != nil {
		return fmt.Errorf("--proof: %w", err)
	}
	var proof translog.Proof
	if err := json.Unmarshal(raw, &proof); err != nil {
		return exitError{fmt.Errorf("%s is no proof: %w", file, err), exitTampered}
	}
	if len(copies) > 1 {
		return errors.New("a proof leads to one head: give --head once")
	}
	if len(copies) == 1 {
		given, err := translog.OpenHead(copies[0], keys)
		if err != nil {
			return exitError{fmt.Errorf("--head: %w", err), exitTampered}
		}
		if own, err := translog.OpenHead([]byte(proof.Head), keys); err == nil && own.Size != given.Size {
			return fmt.Errorf("the proof leads to the head of %d events, and --head is of %d: make one with 'musique events prove --to %d'", own.Size, given.Size, given.Size)
		}
		proof.Head = string(copies[0])
	}
	head, from, entry, err := proof.Check(keys)
	if err != nil {
		return exitError{err, exitTampered}
	}
	result := proofResult{Verdict: translog.Verified, Kind: proof.Kind, Size: head.Size}
	if from != nil {
		result.From = &from.Size
	}
	if entry != nil {
		named := entry.Named()
		result.Index, result.Event = &proof.Index, &named
	}
	return out.print(cmd, result, func(w io.Writer) {
		if entry != nil {
			fmt.Fprintf(w, "Event %d of the %d that the head was signed of:\n%s\ndata SHA-256 %s\nmetadata SHA-256 %s\n", proof.Index, head.Size, result.Event,
				result.Event.DataHash, result.Event.MetaHash)
			return
		}
		fmt.Fprintf(w, "The head of %d events goes on from the head of %d events\n", head.Size, from.Size)
	})
}

func eventsProve() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "prove",
		Short: "Prove that an event is in the signed history, or that one head goes on from another",
		Long: `Make a proof, as JSON, that needs neither the event store nor the rest of the history to be checked: that an event is
among those that a head was signed of (RFC 9162 §2.1.3), or that one head goes on from an older one (§2.1.4). It is made of
the folder of the heads alone. 'musique events verify --proof' checks it.`,
		Example: `  musique events prove --event 0b8c0a3e-… > proof.json
  musique events prove --position 4711
  musique events prove --from 1000 --to 2000`,
		Args: cobra.NoArgs,
	}
	given := bindHistory(cmd, historySettings)
	eventID := cmd.Flags().String("event", "", "ID of the event")
	position := cmd.Flags().Uint64("position", 0, "position of the event in $all")
	from := cmd.Flags().Uint64("from", 0, "size of the older head")
	to := cmd.Flags().Uint64("to", 0, "size of the head that the proof leads to (default: the newest)")
	cmd.MarkFlagsMutuallyExclusive("event", "position", "from")
	cmd.MarkFlagsOneRequired("event", "position", "from")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		dir, keys, err := resolveHistory(cmd, historySettings, *given)
		if err != nil {
			return err
		}
		proof, err := prove(cmd.Context(), cmd, dir, keys, *eventID, *position, *from, *to)
		if err != nil {
			return err
		}
		return printJSON(cmd.OutOrStdout(), proof)
	}
	return cmd
}

func prove(ctx context.Context, cmd *cobra.Command, dir string, keys []string, eventID string, position, from, to uint64) (translog.Proof, error) {
	head, err := translog.HeadOf(dir, to, keys)
	if err != nil {
		return translog.Proof{}, err
	}
	if cmd.Flags().Changed("from") {
		older, err := translog.HeadOf(dir, from, keys)
		if err != nil {
			return translog.Proof{}, err
		}
		return translog.ProveConsistency(dir, older, head)
	}
	index, err := translog.Find(ctx, dir, head.Size, func(e translog.Entry) bool {
		if eventID != "" {
			return e.ID.String() == eventID
		}
		return e.Position.Commit == position
	})
	if err != nil {
		return translog.Proof{}, fmt.Errorf("the event: %w", err)
	}
	return translog.ProveInclusion(dir, head, index)
}
