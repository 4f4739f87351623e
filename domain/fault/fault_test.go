package fault_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/fault"
)

func TestACodeIsFoundThroughWhatWrapsIt(t *testing.T) {
	t.Parallel()
	refused := fault.New(fault.Conflict, "%d sends are pending.", 2)
	require.Equal(t, fault.Conflict, fault.CodeOf(fmt.Errorf("delete: %w", refused)))
	require.Equal(t, fault.Conflict, fault.CodeOf(errors.Join(errors.New("also"), refused)))
	require.Equal(t, "conflict: 2 sends are pending.", refused.Error())
	require.Equal(t, fault.Internal, fault.CodeOf(errors.New("disk full")), "what has no code is nothing that a caller can do something about")
}

func TestForField(t *testing.T) {
	t.Parallel()
	require.Equal(t, &fault.Error{
		Code: fault.OutOfRange, Message: "repeat is 1 to 10.", Param: "repeat", Fields: []fault.Field{{Param: "repeat", Code: fault.OutOfRange, Message: "repeat is 1 to 10."}},
	}, fault.ForField("repeat", fault.OutOfRange, "repeat is 1 to %d.", 10))
}

func TestFieldsAreToldAtOnce(t *testing.T) {
	t.Parallel()
	var fields fault.Fields
	require.NoError(t, fields.Err())

	fields.Add("name", fault.MissingField, "Give a name.")
	require.Equal(t, &fault.Error{Code: fault.MissingField, Message: "Give a name.", Param: "name", Fields: fields}, fields.Err())

	fields.Add("repeat", fault.OutOfRange, "repeat is 1 to %d.", 10)
	require.Equal(t, &fault.Error{Code: fault.MissingField, Message: "Give a name (and 1 more; see details.fields).", Param: "name", Fields: fields}, fields.Err())
}
