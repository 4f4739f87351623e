package esnode

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Checkpoint makes a folder with all events that were acknowledged until now, for a node to be started on, while this one goes on. The files are linked where they
// can be, so it takes little time and room; what the disk refuses of it stops the node as any write does, so it should be the node's own disk. dir must not be there.
func (n *Node) Checkpoint(dir string) error {
	n.store.mu.Lock()
	closed := n.store.current == nil
	n.store.mu.Unlock()
	if closed {
		return errClosed
	}
	if err := n.store.db.Checkpoint(dir, pebble.WithFlushedWAL()); err != nil {
		return fmt.Errorf("checkpoint of the event store: %w", err)
	}
	return nil
}
