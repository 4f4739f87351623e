package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/musique/musique/infra/postgres"
)

// benchAudio is how much audio the library holds, and benchPage how much of it one list shows.
const (
	benchAudio = 200
	benchPage  = 20
)

// bareReads are handlers that do one indexed query with pgx and write what they find, and nothing else: no token is checked, nothing is counted or noted.
type bareReads struct {
	pool   *pgxpool.Pool
	server *http.Server
	url    string
}

// startBareReads serves the handlers over the same database, with connections of their own.
func startBareReads(ctx context.Context, databaseURL, companyID, tokenHash string, running *errgroup.Group) (_ *bareReads, err error) {
	b := &bareReads{}
	if b.pool, err = postgres.Connect(ctx, databaseURL); err != nil {
		return nil, err
	}
	routes := http.NewServeMux()
	routes.HandleFunc("GET /audio", func(w http.ResponseWriter, r *http.Request) {
		type item struct {
			AudioID     string    `json:"audioId"`
			Name        string    `json:"name"`
			Description string    `json:"description"`
			Category    string    `json:"category"`
			Format      string    `json:"format"`
			DurationMs  int64     `json:"durationMs"`
			Size        int64     `json:"size"`
			SHA256      string    `json:"sha256"`
			BlobKey     string    `json:"blobKey"`
			CreatedAt   time.Time `json:"createdAt"`
		}
		const query = `SELECT audio_id, name, description, category, format, duration_ms, size, sha256, blob_key, created_at
			FROM audio.item WHERE company_id = $1 AND environment = 'live' ORDER BY position DESC LIMIT $2`
		bareAnswer[item](w, r, b.pool, query, companyID, benchPage)
	})
	routes.HandleFunc("POST /test", func(w http.ResponseWriter, r *http.Request) {
		type token struct {
			TokenID     string   `json:"tokenId"`
			ExternalID  string   `json:"externalId"`
			UserID      int64    `json:"userId"`
			Environment string   `json:"environment"`
			Permissions []string `json:"permissions"`
		}
		bareAnswer[token](w, r, b.pool, `SELECT token_id, external_id, user_id, environment, permissions FROM tokens.token WHERE hash = $1`, tokenHash)
	})
	server, address, err := listen(ctx, "127.0.0.1:0", routes, running)
	if err != nil {
		b.pool.Close()
		return nil, err
	}
	b.server, b.url = server, "http://"+address
	return b, nil
}

// bareAnswer writes the rows of a query as JSON.
func bareAnswer[T any](w http.ResponseWriter, r *http.Request, pool *pgxpool.Pool, query string, args ...any) {
	rows, _ := pool.Query(r.Context(), query, args...) // an error shows in rows
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[T])
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(found) // a caller that has gone
}

func (b *bareReads) close() error {
	err := b.server.Close()
	b.pool.Close()
	return err
}

// reads measures requests that change nothing, all from callers with one token: what is counted is counted in one row.
func (b *bench) reads(ctx context.Context) (figures []benchFigure, err error) {
	s, err := startBenchSystem(ctx, b.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for range benchAudio {
		if _, err := s.upload(ctx); err != nil {
			return nil, err
		}
	}
	bare, err := startBareReads(ctx, s.parts.pool.Config().ConnString(), s.caller.CompanyID, s.parts.keys.HashToken(s.token), s.running)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bare.close()) }()
	for _, read := range []struct{ name, method, path, barePath, baselineIs string }{
		{"GET /audio", http.MethodGet, "/api/v1/integration/audio", "/audio", "a bare net/http handler that does the same list's query"},
		{"test a token", http.MethodPost, "/api/v1/integration/test", "/test", "a bare net/http handler that looks the token up"},
	} {
		baseline, product, err := b.byTurns(
			func(d time.Duration) (tally, error) {
				return many(ctx, benchCallers, d, func(ctx context.Context) error { return s.read(ctx, read.method, bare.url+read.barePath) })
			},
			func(d time.Duration) (tally, error) {
				return many(ctx, benchCallers, d, func(ctx context.Context) error { return s.read(ctx, read.method, s.url+read.path) })
			})
		if err != nil {
			return nil, err
		}
		figures = append(figures, newFigure(fmt.Sprintf("%s, callers: %d", read.name, benchCallers), "/s", product, baseline, read.baselineIs))
	}
	return figures, nil
}

// read asks and reads the answer to its end.
func (s *benchSystem) read(ctx context.Context, method, url string) error {
	ctx, cancel := context.WithTimeout(ctx, benchPatience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("X-API-Key", s.token)
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s was answered with %s: %s", method, url, resp.Status, body)
	}
	return err
}
