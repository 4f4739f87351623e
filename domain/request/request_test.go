package request_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/request"
)

func TestStream(t *testing.T) {
	t.Parallel()
	require.Equal(t, "request-2fb592b2", request.Stream("2fb592b2"))
}
