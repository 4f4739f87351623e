package kafka

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ghostLook is how often the embedded broker looks for consumers that are gone.
const ghostLook = 2 * time.Second

// ghosts takes consumers out of their groups that died while the broker had them wait for the others to join. kfake begins to time a member's session when it
// answers it, and not where the answer has nobody to go to: such a member would keep its partitions for ever, and nobody would get what is in them.
type ghosts struct {
	mu sync.Mutex
	// heard is when each member was last heard of, or seen for the first time.
	heard map[string]time.Time
	// silence is how long the members of a group may be silent: the longest that one of them waits for others, and its session.
	silence map[string]time.Duration
}

// watch listens to what members of groups say.
func (g *ghosts) watch(cluster *kfake.Cluster) {
	g.heard, g.silence = map[string]time.Time{}, map[string]time.Duration{}
	for _, key := range []kmsg.Key{kmsg.JoinGroup, kmsg.SyncGroup, kmsg.Heartbeat} {
		cluster.ControlKey(key.Int16(), func(request kmsg.Request) (kmsg.Response, error, bool) {
			g.hear(request)
			return nil, nil, false
		})
	}
}

func (g *ghosts) hear(request kmsg.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	member := ""
	switch r := request.(type) {
	case *kmsg.JoinGroupRequest:
		member = r.MemberID
		silence := time.Duration(r.SessionTimeoutMillis+max(r.RebalanceTimeoutMillis, 0)) * time.Millisecond
		g.silence[r.Group] = max(g.silence[r.Group], silence)
	case *kmsg.SyncGroupRequest:
		member = r.MemberID
	case *kmsg.HeartbeatRequest:
		member = r.MemberID
	}
	if member != "" {
		g.heard[member] = time.Now()
	}
}

// run looks for ghosts until stop is closed.
func (g *ghosts) run(addr string, stop <-chan struct{}, log *slog.Logger) {
	client, err := newClient([]string{addr})
	if err != nil {
		log.Error("embedded kafka: dead consumers cannot be looked for", "error", err)
		return
	}
	defer client.Close()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-stop
		cancel()
	}()
	tick := time.NewTicker(ghostLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := g.look(ctx, client, log); err != nil && ctx.Err() == nil {
				log.Warn("embedded kafka: dead consumers cannot be looked for", "error", err)
			}
		}
	}
}

func (g *ghosts) look(ctx context.Context, client *kgo.Client, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	groups, err := kadm.NewClient(client).DescribeGroups(ctx)
	if err != nil {
		return err
	}
	for group, members := range g.silent(groups, time.Now()) {
		log.Warn("embedded kafka: consumers that died while they joined a group are taken out of it", "group", group, "members", len(members))
		leave := kmsg.NewPtrLeaveGroupRequest()
		leave.Group = group
		for _, id := range members {
			member := kmsg.NewLeaveGroupRequestMember()
			member.MemberID = id
			leave.Members = append(leave.Members, member)
		}
		if _, err := leave.RequestWith(ctx, client); err != nil {
			return err
		}
	}
	return nil
}

// silent gives the members, by group, that were not heard of for too long. Those that are gone are forgotten.
func (g *ghosts) silent(groups kadm.DescribedGroups, now time.Time) map[string][]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	found, there := map[string][]string{}, map[string]time.Time{}
	for name, group := range groups {
		for _, m := range group.Members {
			last, known := g.heard[m.MemberID]
			if !known {
				last = now
			}
			there[m.MemberID] = last
			if silence := g.silence[name]; silence > 0 && now.Sub(last) > silence {
				found[name] = append(found[name], m.MemberID)
			}
		}
	}
	g.heard = there
	return found
}
