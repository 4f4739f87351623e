package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/musique/musique/projections"
)

// childPatience bounds the start of a server.
const childPatience = 2 * time.Minute

// child is `musique serve` in a process of its own.
type child struct {
	cmd        *exec.Cmd
	ops        opsClient
	url        string
	readyAfter time.Duration
	ended      chan error
	said       bytes.Buffer // until it was ready
}

// startChild starts a server on a folder, with these roles and settings, and waits until it is ready.
func startChild(ctx context.Context, dir, its string, settings ...string) (*child, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	args := append([]string{
		"serve", "--data-dir", dir, "--roles", its, "--log-format", "json", "--log-level", "info", "--demo", "false",
		"--http-addr", anyPort, "--ops-addr", anyPort, "--eventstore-listen", anyPort, "--kafka-listen", anyPort,
	}, settings...)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is for this process, which ends the other
	output, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, ended: make(chan error, 1)}
	type readyNews struct{ Msg, HTTP, Ops string }
	ready := make(chan readyNews, 1)
	go func() {
		lines := bufio.NewScanner(output)
		for told := false; lines.Scan(); {
			var line readyNews
			if told || json.Unmarshal(lines.Bytes(), &line) != nil || line.Msg != "ready" {
				if !told {
					c.said.Write(append(lines.Bytes(), '\n'))
				}
				continue
			}
			told = true
			ready <- line
		}
		close(ready)
		c.ended <- cmd.Wait()
	}()
	patience := time.NewTimer(childPatience)
	defer patience.Stop()
	select {
	case line, ok := <-ready:
		if !ok {
			return nil, fmt.Errorf("a server ended before it was ready: %w\n%s", <-c.ended, c.said.String())
		}
		c.readyAfter, c.url, c.ops = time.Since(began), "http://"+line.HTTP, newOpsClient(line.Ops, os.Getenv("MUSIQUE_OPS_TOKEN"), "json")
		return c, nil
	case <-patience.C:
		return nil, errors.Join(fmt.Errorf("a server is not ready after %v", childPatience), c.kill())
	}
}

// kill ends the server as a loss of power would.
func (c *child) kill() error {
	err := c.cmd.Process.Kill()
	ended := <-c.ended
	if _, bySignal := errors.AsType[*exec.ExitError](ended); bySignal {
		ended = nil
	}
	return errors.Join(err, ended)
}

// stop ends it in order.
func (c *child) stop() error {
	return errors.Join(c.cmd.Process.Signal(syscall.SIGTERM), <-c.ended)
}

func (c *child) residentBytes() int64 { return residentBytesOf(fmt.Sprint(c.cmd.Process.Pid)) }

// awaitProjections waits until the projections are as told, and gives them by name.
func (c *child) awaitProjections(ctx context.Context, as func([]projections.Status) bool) (map[string]projections.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, historyPatience)
	defer cancel()
	tick := time.NewTicker(watchEvery / 10)
	defer tick.Stop()
	for {
		var all []projections.Status
		if _, err := c.ops.call(ctx, http.MethodGet, "/ops/projections", nil, &all); err != nil {
			return nil, err
		}
		if as(all) {
			byName := map[string]projections.Status{}
			for _, s := range all {
				byName[s.Name] = s
			}
			return byName, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// rebuild has a projection built anew, and waits until it serves.
func (c *child) rebuild(ctx context.Context, name string) error {
	if _, err := c.ops.call(ctx, http.MethodPost, "/ops/projections/"+name+"/rebuild", map[string]bool{"fresh": true}, nil); err != nil {
		return err
	}
	_, err := c.awaitProjections(ctx, func(all []projections.Status) bool {
		for _, s := range all {
			if s.Name == name {
				return s.Rebuilds == 1
			}
		}
		return false
	})
	return err
}
