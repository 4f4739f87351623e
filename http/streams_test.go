package httpapi_test

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	httpapi "github.com/musique/musique/http"
)

// A process tells every few seconds which streams are open. One that closes meanwhile must not come back by that.
func presenceEndsWithTheStream(t *testing.T, w *world) {
	p := w.partner(t)
	p.location("till")
	d := p.device("till")
	api, url, _ := w.serve(t, w.config)
	over := make(chan struct{})
	var telling, players sync.WaitGroup
	telling.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
				httpapi.TellPresence(api)
			}
		}
	})
	for range 4 {
		players.Go(func() {
			for range 12 {
				s := w.listen(t, url, d.Token, "")
				s.stop()
				s.ended()
			}
		})
	}
	players.Wait()
	close(over)
	telling.Wait()
	began := time.Now()
	eventually(t, "the location is still online", func() bool {
		return !ok[struct{ Online bool }](t, p.get("/locations/till"), http.StatusOK).Online
	})
	require.Less(t, time.Since(began), 10*time.Second)
	var rows int
	require.NoError(t, w.pool.QueryRow(t.Context(), "SELECT count(*) FROM presence.stream WHERE company_id = $1", p.companyID).Scan(&rows))
	require.Zero(t, rows)
}
