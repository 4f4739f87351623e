package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/infra/blobs"
	"github.com/musique/musique/infra/eventstore/storetest"
	"github.com/musique/musique/infra/kafka/kafkatest"
	"github.com/musique/musique/infra/postgres/postgrestest"
)

// Three processes with all roles share an event store, Kafka and PostgreSQL, and are killed in turn under load: each time the others take over what the dead
// one was active in, the whole way from a send to its player. Nothing that was answered is lost, nothing is there twice, and every play is on its topic.
func TestThreeProcessesKilledInTurn(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	folder, err := blobs.FolderURL(filepath.Join(t.TempDir(), "blobs"))
	require.NoError(t, err)
	brokers := strings.Join(kafkatest.OwnBrokers(t), ",")
	shared := []string{
		"--eventstore", storetest.URL(t), "--kafka", brokers, "--database", postgrestest.URL(t), "--blobs", folder, "--secret-key", strings.Repeat("c3", 32),
	}
	begin := func() *server { return serveOn(t, t.TempDir(), shared...) }
	servers := []*server{begin(), begin(), begin()}
	c := &chaos{t: t, api: servers[0].signIn(t, operator[companyMade](servers[0], "company", "create", "--name", "Acme", "--plan", "unlimited").CompanyToken, "hq")}
	first := c.api.upload("the first", aSecond())
	c.audio = []string{first}
	var shops []*crashShop
	for i, name := range crashShops {
		shops = append(shops, newCrashShop(t, name, c.api.location(name), servers[i].url))
	}
	probe := newCrashShop(t, "probe", c.api.location("probe"), servers[0].url)
	var probed []string

	for turn := range servers {
		c.use(servers...)
		work, stop := context.WithCancel(t.Context())
		var working sync.WaitGroup
		for caller := range callers {
			working.Go(func() { c.work(work, rand.New(rand.NewPCG(seed, uint64(1+turn*callers+caller)))) })
		}
		<-time.After(time.Duration(random.Int64N(int64(maxWork)))) // the moment of a kill is anyone's
		servers[turn].kill()
		survivors := []*server{servers[(turn+1)%3], servers[(turn+2)%3]}
		c.use(survivors...)
		for i, shop := range append(shops, probe) {
			shop.connect(survivors[i%2].url)
		}
		killed := time.Now()
		probed = append(probed, c.api.on(survivors[0]).send(first, "probe"))
		answered := time.Since(killed)
		probe.awaits(probed)
		t.Logf("process %d killed: a send was answered after %v, and was at its player after %v", turn+1, answered, time.Since(killed))
		stop()
		working.Wait()
		servers[turn] = begin()
	}
	c.use(servers...)
	require.Greater(t, c.settle(), len(servers), "something was going on")
	// What the probe got is no request of theirs.
	for i, sendID := range probed {
		c.requests = append(c.requests, &crashRequest{key: fmt.Sprint("probe-", i), id: sendID, audioID: first, shops: []string{"probe"}})
	}
	c.check(append(shops, probe))
	plays := 0
	for _, shop := range append(shops, probe) {
		plays += len(shop.came)
	}
	published(t, brokers, "AudioPlayed", plays)
	for _, s := range servers {
		s.terminate()
	}
}
