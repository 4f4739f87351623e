package readmodel

import (
	"strconv"
	"strings"
)

// Query is a statement of a list, which has the conditions that were asked for and no others. A condition that is there and may be off, as in
//
//	($4 = '' OR category = $4)
//
// makes PostgreSQL plan the statement anew each time, which takes it as long as reading a page.
type Query struct {
	text strings.Builder
	args []any
}

// NewQuery begins a statement that has a WHERE, with its arguments.
func NewQuery(text string, args ...any) *Query {
	q := &Query{args: args}
	q.text.WriteString(text)
	return q
}

// And adds a condition, in which `$?` stands for its argument.
func (q *Query) And(condition string, arg any) *Query {
	q.text.WriteString(" AND ")
	q.add(condition, arg)
	return q
}

// Arg adds an argument and gives what stands for it, for a condition that has several.
func (q *Query) Arg(arg any) string {
	q.args = append(q.args, arg)
	return "$" + strconv.Itoa(len(q.args))
}

// End adds the end of the statement, in which `$?` stands for its argument.
func (q *Query) End(end string, arg any) *Query {
	q.text.WriteString(" ")
	q.add(end, arg)
	return q
}

func (q *Query) add(text string, arg any) {
	q.text.WriteString(strings.ReplaceAll(text, "$?", q.Arg(arg)))
}

// Statement is the statement's text.
func (q *Query) Statement() string { return q.text.String() }

// Args are the arguments of the statement.
func (q *Query) Args() []any { return q.args }
