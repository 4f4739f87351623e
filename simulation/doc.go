// Package simulation is a test of the whole delivery: several server processes that die and come back, thousands of players that come and go, partners that
// send, cancel and delete, all at random, on real parts. What must hold then is checked from the events, the read models and the players' own logs.
//
// A run follows from its seed: it asks for the same in the same order, though not at the same moments. The seed is printed; this repeats a run, or makes a
// longer one:
//
//	go test ./simulation -simulation.seed=42
//	go test ./simulation -simulation.players=2000 -simulation.rounds=100 -timeout 1h
package simulation
