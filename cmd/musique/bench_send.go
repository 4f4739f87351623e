package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// sends measures how many sends are accepted, while those accepted before are delivered.
func (b *bench) sends(ctx context.Context) (figures []benchFigure, err error) {
	node, err := startBareNode(b.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, node.close()) }()
	s, err := startBenchSystem(ctx, b.dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	baseline, product, err := b.byTurns(
		func(d time.Duration) (tally, error) { return many(ctx, benchCallers, d, node.append) },
		func(d time.Duration) (tally, error) {
			t, err := many(ctx, benchCallers, d, s.send)
			if err != nil {
				return tally{}, err
			}
			// What is still on its way to the players must not weigh on the baseline's next turn.
			_, err = s.sent.all(ctx)
			return t, err
		})
	if err != nil {
		return nil, err
	}
	return []benchFigure{newFigure(fmt.Sprintf("send, callers: %d", benchCallers), "/s", product, baseline, "the same event, appended by as many writers")}, nil
}
