// Package postgres is what the project needs around PostgreSQL: a pool with limits, migrations that many processes may run at once, the
// question whether an error means that the server is away, and a server of our own (StartEmbedded) for machines that run no PostgreSQL.
package postgres
