package simulation

import (
	"flag"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	seedFlag    = flag.Uint64("simulation.seed", 0, "repeat the run with this seed; 0 is a new one")
	playersFlag = flag.Int("simulation.players", 0, "how many players; 0 is as many as the test has by itself. With the race detector there can be no more than 2,000")
	roundsFlag  = flag.Int("simulation.rounds", 0, "how many rounds of the script; 0 is as many as the test has by itself")
)

func TestMain(m *testing.M) {
	if config := os.Getenv(asProcess); config != "" {
		os.Exit(runAsProcess(config))
	}
	os.Exit(m.Run())
}

// newSeed is the seed that was asked for, or a new one.
func newSeed() uint64 {
	if *seedFlag != 0 {
		return *seedFlag
	}
	return uint64(time.Now().UnixNano())
}

func simulate(t *testing.T, s scale) {
	s.seed = newSeed()
	if *playersFlag > 0 {
		s.players = *playersFlag
	}
	if *roundsFlag > 0 {
		s.rounds = *roundsFlag
	}
	t.Logf("-simulation.seed=%d -simulation.players=%d -simulation.rounds=%d", s.seed, s.players, s.rounds)
	r := newRun(t, s)
	r.play()
	r.check()
}

// Processes lose all their connections at once, and their databases' now and then.
func TestDelivery(t *testing.T) {
	s := scale{players: 1500, rounds: 4}
	if testing.Short() {
		s = scale{players: 240, rounds: 2}
	}
	simulate(t, s)
}

// The processes are those of the operating system, and are killed by it.
func TestDeliveryByProcessesThatAreKilled(t *testing.T) {
	s := scale{players: 200, rounds: 3, children: true}
	if testing.Short() {
		s.players, s.rounds = 60, 1
	}
	simulate(t, s)
}

// A seed is of use only if it brings the same again.
func TestTheScriptFollowsFromTheSeed(t *testing.T) {
	t.Parallel()
	one, again, another := &run{scale: scale{seed: 1}}, &run{scale: scale{seed: 1}}, &run{scale: scale{seed: 2}}
	script := func(r *run, caller uint64) []step { return callerScript(r.random(ofCallers, caller), 10, 100) }
	require.Equal(t, script(one, 0), script(again, 0))
	require.NotEqual(t, script(one, 0), script(one, 1))
	require.NotEqual(t, script(one, 0), script(another, 0))
	require.Equal(t, troubleScript(one.random(ofTroubles), 10), troubleScript(again.random(ofTroubles), 10))
}
