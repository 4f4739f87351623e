// Command musique is Musique's Partner API in one binary: the server with all its roles, the operator's commands and the reference player.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/musique/musique/player"
)

// version is set by the build (-ldflags "-X main.version=…").
var version = "dev"

// exitSignedOut is the status of a player whose device token is not accepted: EX_NOPERM of sysexits.h. Nothing helps but another token.
const exitSignedOut = 77

// exitError is an error that has an exit status of its own, so that scripts can tell it from others.
type exitError struct {
	error
	status int
}

func main() {
	os.Exit(run())
}

// run is main with deferred calls honoured. The first SIGINT or SIGTERM ends the context, which every subcommand obeys by finishing what it
// has in hand; a second one ends the process as it would without us.
func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	defer stop()

	err := newRoot().ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return 0
	default:
		fmt.Fprintln(os.Stderr, "musique:", err)
		if exit, ok := errors.AsType[exitError](err); ok {
			return exit.status
		}
		if errors.Is(err, player.ErrSignedOut) {
			return exitSignedOut
		}
		return 1
	}
}
