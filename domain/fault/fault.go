// Package fault is the one error type that the product answers with: a code of the contract, a sentence for the reader, and the
// fields it concerns. It is made where the reason is known, carried with %w, and turned into HTTP in one place.
package fault

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Code is an error code of the public contract.
type Code string

// The codes of the contract.
const (
	InvalidToken       Code = "invalid_token"
	ExpiredToken       Code = "expired_token"
	InsufficientScope  Code = "insufficient_scope"
	NotFound           Code = "not_found"
	MethodNotAllowed   Code = "method_not_allowed"
	AlreadyExists      Code = "already_exists"
	Conflict           Code = "conflict"
	InvalidFormat      Code = "invalid_format"
	MissingField       Code = "missing_field"
	OutOfRange         Code = "out_of_range"
	RateLimitExceeded  Code = "rate_limit_exceeded"
	QuotaExceeded      Code = "quota_exceeded"
	Internal           Code = "internal_error"
	ServiceUnavailable Code = "service_unavailable"
)

// Field is one failing field of a request.
type Field struct {
	Param   string `json:"param"`
	Code    Code   `json:"code"`
	Message string `json:"message"`
}

// Error is what a caller is told.
type Error struct {
	Code Code
	// Message says in one sentence what is wrong and what to do.
	Message string
	// Param names the failing field, if there is one.
	Param string
	// Fields lists every failing field of a body.
	Fields []Field
	// Details is what else the contract gives with this code.
	Details map[string]any
	// RetryAfter is how long to wait before a retry; zero where a retry is of no use.
	RetryAfter time.Duration
	// Status overrides the code's usual HTTP status where the contract names two (413, 415); zero otherwise.
	Status int
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %s", e.Code, e.Message) }

// New makes an error without a field.
func New(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// ForField makes an error about one field.
func ForField(param string, code Code, format string, args ...any) *Error {
	message := fmt.Sprintf(format, args...)
	return &Error{Code: code, Message: message, Param: param, Fields: []Field{{Param: param, Code: code, Message: message}}}
}

// CodeOf gives the code of an error, or Internal if it has none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return Internal
}

// MaxFields bounds the failing fields that are told of one request: an array has room for a hundred thousand.
const MaxFields = 100

// Fields collects the failing fields of a request, so that all of them are told at once.
type Fields []Field

// Add notes one failing field, up to MaxFields of them.
func (f *Fields) Add(param string, code Code, format string, args ...any) {
	if len(*f) >= MaxFields {
		return
	}
	*f = append(*f, Field{Param: param, Code: code, Message: fmt.Sprintf(format, args...)})
}

// Err is nil if no field failed, else one error whose code and param are those of the first.
func (f Fields) Err() error {
	if len(f) == 0 {
		return nil
	}
	return &Error{Code: f[0].Code, Message: Summary(f, "details.fields"), Param: f[0].Param, Fields: f}
}

// Summary is the first of some failing fields' messages, in a sentence that says where the others are.
func Summary(fields []Field, where string) string {
	if len(fields) == 1 {
		return fields[0].Message
	}
	return fmt.Sprintf("%s (and %d more; see %s).", strings.TrimSuffix(fields[0].Message, "."), len(fields)-1, where)
}
