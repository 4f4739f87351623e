package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

const (
	// fleetCommand is the subcommand that the players run in.
	fleetCommand = "bench-players"
	// fleetPatience bounds the wait for all players to be connected, or to have received something.
	fleetPatience = 3 * time.Minute
	// portsPerAddress is how many connections to one server come from one address of loopback: systems have some 16,000 to 28,000 ports for them.
	portsPerAddress = 10_000
	// spareFiles is what a process has open besides its players' connections, at most.
	spareFiles = 500
	// playerBuffer is how many bytes a player of the fleet reads at once, and maxPlayerLine the longest line that it takes.
	playerBuffer  = 512
	maxPlayerLine = 16 << 10
)

// fleetOrders is what the fleet is told first, on its standard input; when that closes, it ends.
type fleetOrders struct {
	Address string   `json:"address"` // host:port
	Path    string   `json:"path"`
	Tokens  []string `json:"tokens"` // a player for each
}

// fleetNews is what it tells, a line each: that all are connected, and then of each event, once all have it.
type fleetNews struct {
	Error string `json:"error,omitempty"`
	// First, P50, P99 and Last are when so many players had it, in Unix nanoseconds.
	First int64 `json:"first"`
	P50   int64 `json:"p50"`
	P99   int64 `json:"p99"`
	Last  int64 `json:"last"`
}

// newBenchPlayers is the players' side of the bench. It is a process of its own, so that what the players cost is not in the figures of who serves them.
func newBenchPlayers() *cobra.Command {
	return &cobra.Command{
		Use: fleetCommand, Short: "The players of 'musique bench'", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := json.NewEncoder(cmd.OutOrStdout())
			in := json.NewDecoder(cmd.InOrStdin())
			var orders fleetOrders
			if err := in.Decode(&orders); err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			go func() {
				_, _ = io.Copy(io.Discard, cmd.InOrStdin()) // it ends when nobody has orders any more, however that came
				cancel()
			}()
			err := runFleet(ctx, orders, func(news fleetNews) error { return out.Encode(news) })
			if err != nil && ctx.Err() == nil {
				return errors.Join(err, out.Encode(fleetNews{Error: err.Error()}))
			}
			return nil
		},
	}
}

// runFleet connects the players, and tells when all have received what came.
func runFleet(ctx context.Context, orders fleetOrders, tell func(fleetNews) error) error {
	if err := allowFiles(len(orders.Tokens)); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	players, reached := make([]*fleetPlayer, len(orders.Tokens)), make([]int64, len(orders.Tokens))
	connecting, connectCtx := errgroup.WithContext(ctx)
	connecting.SetLimit(benchCallers)
	for i, token := range orders.Tokens {
		connecting.Go(func() (err error) {
			players[i], err = connectPlayer(connectCtx, orders, i, token)
			reached[i] = time.Now().UnixNano()
			return err
		})
	}
	if err := connecting.Wait(); err != nil {
		return err
	}
	if err := tell(summary(reached)); err != nil {
		return err
	}
	// Who asked sends the next event when all have the one before, so a round is over when as many have come as there are players.
	var received atomic.Int64
	complete := make(chan []int64, 1)
	for i, p := range players {
		group.Go(func() error {
			defer p.conn.Close()
			stop := context.AfterFunc(ctx, func() { _ = p.conn.Close() })
			defer stop()
			for {
				if err := p.next(); err != nil {
					return fmt.Errorf("player %d: %w", i, err)
				}
				reached[i] = time.Now().UnixNano()
				if received.Add(1)%int64(len(players)) == 0 {
					complete <- slices.Clone(reached)
				}
			}
		})
	}
	group.Go(func() error {
		for {
			select {
			case all := <-complete:
				if err := tell(summary(all)); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	return group.Wait()
}

func summary(times []int64) fleetNews {
	slices.Sort(times)
	at := func(percent int) int64 { return times[(len(times)-1)*percent/100] }
	return fleetNews{First: at(0), P50: at(50), P99: at(99), Last: at(100)}
}

// fleetPlayer is a player that only listens.
type fleetPlayer struct {
	conn  net.Conn
	lines *bufio.Scanner
}

// connectPlayer opens a stream, and reads its head.
func connectPlayer(ctx context.Context, orders fleetOrders, i int, token string) (*fleetPlayer, error) {
	var dialer net.Dialer
	if n := i / portsPerAddress; n > 0 {
		dialer.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(1+n))}
	}
	conn, err := dialer.DialContext(ctx, "tcp", orders.Address)
	if err != nil {
		return nil, err
	}
	err = conn.SetDeadline(time.Now().Add(benchPatience))
	if err == nil {
		_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\nAuthorization: Bearer %s\r\n\r\n", orders.Path, orders.Address, token)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, playerBuffer), nil) //nolint:bodyclose // it ends with the connection
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("a player's stream: %s", resp.Status)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(make([]byte, playerBuffer), maxPlayerLine)
	return &fleetPlayer{conn, lines}, nil
}

// next waits for the next event.
func (p *fleetPlayer) next() error {
	for p.lines.Scan() {
		if bytes.HasPrefix(p.lines.Bytes(), []byte("data: ")) {
			return nil
		}
	}
	if err := p.lines.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF
}

// allowFiles lets this process have as many files open as so many connections take, if the system lets it.
func allowFiles(connections int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	need := uint64(connections + spareFiles)
	if limit.Max < need {
		return fmt.Errorf("%d players take %d open files, and the system allows this process %d: raise its hard limit (ulimit -Hn), or measure fewer (--players)", connections, need, limit.Max)
	}
	if limit.Cur >= need {
		return nil
	}
	limit.Cur = limit.Max
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
}

// fleet is the players' process.
type fleet struct {
	cmd   *exec.Cmd
	input io.Closer
	news  chan fleetNews
	ended chan error
}

// startFleet starts the players, and waits until all are connected.
func startFleet(ctx context.Context, orders fleetOrders) (f *fleet, connected fleetNews, err error) {
	if err := allowFiles(len(orders.Tokens)); err != nil {
		return nil, fleetNews{}, err
	}
	program, err := os.Executable()
	if err != nil {
		return nil, fleetNews{}, err
	}
	cmd := exec.CommandContext(ctx, program, fleetCommand)
	cmd.Stderr = os.Stderr
	input, err := cmd.StdinPipe()
	if err != nil {
		return nil, fleetNews{}, err
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fleetNews{}, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fleetNews{}, err
	}
	f = &fleet{cmd: cmd, input: input, news: make(chan fleetNews, 1), ended: make(chan error, 1)}
	go func() {
		defer close(f.news)
		for decoder := json.NewDecoder(output); ; {
			var news fleetNews
			if decoder.Decode(&news) != nil { // it has ended, and Wait knows why
				break
			}
			f.news <- news
		}
		f.ended <- cmd.Wait()
	}()
	if err = json.NewEncoder(input).Encode(orders); err == nil {
		connected, err = f.next(ctx)
	}
	if err != nil {
		return nil, fleetNews{}, errors.Join(err, f.close())
	}
	return f, connected, nil
}

// next waits until all players have the next event.
func (f *fleet) next(ctx context.Context) (fleetNews, error) {
	patience := time.NewTimer(fleetPatience)
	defer patience.Stop()
	select {
	case news, ok := <-f.news:
		switch {
		case !ok:
			return fleetNews{}, errors.New("the players ended")
		case news.Error != "":
			return fleetNews{}, fmt.Errorf("the players: %s", news.Error)
		}
		return news, nil
	case <-patience.C:
		return fleetNews{}, fmt.Errorf("not all players have what was sent to them after %v", fleetPatience)
	case <-ctx.Done():
		return fleetNews{}, ctx.Err()
	}
}

// close ends the players, and waits until their connections are closed.
func (f *fleet) close() error {
	err := f.input.Close()
	for range f.news { // what it still had to say
	}
	return errors.Join(err, <-f.ended)
}
