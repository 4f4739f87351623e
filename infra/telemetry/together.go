package telemetry

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/musique/musique/domain/event"
)

const (
	// maxTogether bounds the traces that a piece of work on many things has a span in. Further ones have none of it.
	maxTogether = 32
	// replayAge is how old an event is that is read again and not for the first time, or so late that its trace is over.
	replayAge = 15 * time.Minute
)

// Group is a piece of work on what belongs to several traces, such as a page of events: a span in each of them, however many of its events are there. A nil
// Group is one that nothing is recorded of.
type Group struct {
	ctx    context.Context
	tracer *Tracer
	name   string
	began  time.Time
	spans  map[trace.TraceID]*share
	last   *share
	from   string // the traceparent that last is of
}

type share struct {
	ctx  context.Context
	span trace.Span
	n    int
}

// Together begins work on things that have a traceparent each. In the context that it gives, Next knows of it.
func Together(ctx context.Context, name string, traceParents ...string) (context.Context, *Group) {
	g := begin(ctx, name)
	if g == nil {
		return ctx, nil
	}
	for _, p := range traceParents {
		g.add(p)
	}
	return g.in(ctx), g
}

// OnEvents begins work on events. Those that are read again, in a rebuild, do not count: their traces are over.
func OnEvents(ctx context.Context, name string, events []event.Recorded) (context.Context, *Group) {
	g := begin(ctx, name)
	if g == nil {
		return ctx, nil
	}
	since := g.began.Add(-replayAge)
	for i := range events {
		if m := &events[i].Metadata; m.TraceParent != "" && m.Time.After(since) {
			g.add(m.TraceParent)
		}
	}
	return g.in(ctx), g
}

type groupKey struct{}

func (g *Group) in(ctx context.Context) context.Context {
	if len(g.spans) == 0 {
		return ctx
	}
	return context.WithValue(ctx, groupKey{}, g)
}

func begin(ctx context.Context, name string) *Group {
	t := tracerOf(ctx)
	if t == nil {
		return nil
	}
	return &Group{ctx: ctx, tracer: t, name: name, began: time.Now()}
}

func (g *Group) add(traceParent string) {
	if g.last == nil || g.from != traceParent {
		s := g.of(parse(traceParent))
		if s == nil {
			return
		}
		g.last, g.from = s, traceParent
	}
	g.last.n++
}

func (g *Group) of(parent trace.SpanContext) *share {
	if !parent.IsSampled() || !parent.IsValid() {
		return nil
	}
	if s, ok := g.spans[parent.TraceID()]; ok {
		return s
	}
	if len(g.spans) >= maxTogether {
		return nil
	}
	if g.spans == nil {
		g.spans = map[trace.TraceID]*share{}
	}
	s := &share{}
	s.ctx, s.span = g.tracer.tracer.Start(trace.ContextWithRemoteSpanContext(g.ctx, parent), g.name, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(g.began))
	g.spans[parent.TraceID()] = s
	return s
}

// Next is what the work of a context hands on for one of its things: the traceparent of its span in that trace, or the thing's own where there is none.
func Next(ctx context.Context, traceParent string) string {
	g, working := ctx.Value(groupKey{}).(*Group)
	if !working || traceParent == "" {
		return traceParent
	}
	if s, ok := g.spans[parse(traceParent).TraceID()]; ok {
		return format(s.span.SpanContext())
	}
	return traceParent
}

// End ends the spans. Of an error only that there was one is recorded.
func (g *Group) End(err error) {
	if g == nil {
		return
	}
	for _, s := range g.spans {
		s.span.SetAttributes(attribute.Int("musique.events", s.n), attribute.Int("musique.traces", len(g.spans)))
		if err != nil {
			s.span.SetStatus(codes.Error, "")
		}
		s.span.End()
	}
}

// Failed notes on a span that its work failed, if it did, and nothing of why.
func Failed(span trace.Span, err error) {
	if err != nil {
		span.SetStatus(codes.Error, "")
	}
}

// Attribute notes an ID, or a word of ours, on a span.
func Attribute(span trace.Span, key, value string) {
	if span.IsRecording() {
		span.SetAttributes(attribute.String(key, value))
	}
}

// Number notes a number on a span.
func Number(span trace.Span, key string, value int) {
	if span.IsRecording() {
		span.SetAttributes(attribute.Int(key, value))
	}
}
