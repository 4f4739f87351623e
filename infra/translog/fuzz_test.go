package translog_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/translog"
)

// An encoding has one entry, and an entry one encoding.
func FuzzEntry(f *testing.F) {
	raw, err := translog.NewEntry(example(1)[0]).Marshal()
	require.NoError(f, err)
	f.Add(raw)
	f.Add(raw[:len(raw)-1])
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := translog.ParseEntry(raw)
		if err != nil {
			return
		}
		again, err := e.Marshal()
		require.NoError(t, err)
		require.Equal(t, raw, again)
		_ = e.Named().String()
	})
}

func FuzzEntries(f *testing.F) {
	f.Add([]byte{0, 2, 'a', 'b', 0, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		entries, err := translog.SplitEntries(raw)
		if err != nil {
			return
		}
		size := 0
		for _, e := range entries {
			size += 2 + len(e)
		}
		require.Equal(t, len(raw), size)
	})
}

// Whatever is read as a file of heads, only what the key signed is believed.
func FuzzHeads(f *testing.F) {
	signer := newFolder(f, f.TempDir())
	signer.sign(f, example(2).covered())
	raw, err := os.ReadFile(filepath.Join(signer.dir, "checkpoint"))
	require.NoError(f, err)
	f.Add(raw)
	f.Add(append(append(append([]byte{}, raw...), '\n'), raw...))
	f.Add(raw[:len(raw)-1])
	f.Fuzz(func(t *testing.T, file []byte) {
		notes, _ := translog.SplitNotes(file)
		for _, signed := range notes {
			_, _, _ = translog.ReadHead(signed)
			if head, err := translog.OpenHead(signed, signer.key.Public); err == nil {
				require.Equal(t, uint64(2), head.Size)
			}
		}
	})
}

// Whatever is read as a proof, it proves only what is so.
func FuzzProof(f *testing.F) {
	signer := newFolder(f, f.TempDir())
	h := example(5)
	signer.sign(f, h.covered())
	head, err := translog.HeadOf(signer.dir, 0, signer.key.Public)
	require.NoError(f, err)
	proof, err := translog.ProveInclusion(signer.dir, head, 3)
	require.NoError(f, err)
	raw, err := json.Marshal(proof)
	require.NoError(f, err)
	f.Add(raw)
	proof.Kind = translog.Consistency
	proof.From = proof.Head
	raw, err = json.Marshal(proof)
	require.NoError(f, err)
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		var proof translog.Proof
		if json.Unmarshal(raw, &proof) != nil {
			return
		}
		_, _, entry, err := proof.Check(signer.key.Public)
		if err == nil && entry != nil {
			require.Equal(t, translog.NewEntry(h[proof.Index]), *entry)
		}
	})
}
