package httpapi

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWhoPrefersCSV(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		accept []string
		want   bool
	}{
		{nil, false},
		{[]string{""}, false},
		{[]string{"*/*"}, false},
		{[]string{"application/json"}, false},
		{[]string{"text/csv"}, true},
		{[]string{"Text/CSV"}, true},
		{[]string{"text/*"}, true},
		{[]string{"text/csv, application/json"}, false},
		{[]string{"application/json;q=0.9, text/csv"}, true},
		{[]string{"application/json", "text/csv;q=0.9"}, false},
		{[]string{"application/json;q=0.9", "text/csv"}, true},
		{[]string{"text/csv;q=0.5, */*;q=0.1"}, true},
		{[]string{"text/csv;q=0.1, */*;q=0.5"}, false},
		{[]string{"text/csv;q=0"}, false},
		{[]string{"text/csv;q=0, text/*"}, false},
		{[]string{"text/csv;q=0.001"}, true},
		{[]string{"application/json;q=0, */*"}, true},
		{[]string{"text/csv; header=present"}, true},
		{[]string{"text/csv; charset=UTF-8; header=present"}, true},
		{[]string{"text/csv; header=absent"}, false},
		{[]string{"text/csv; header=present; q=0.2, text/csv, application/json; q=0.5"}, false},
		{[]string{"text/csv;charset=iso-8859-1"}, false},
		{[]string{"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}, false},
		{[]string{"application/xml"}, false},
		{[]string{"application/*, text/csv;q=0.5"}, false},
		{[]string{"nonsense/, text/csv"}, true},
		{[]string{"text/csv;q=2"}, false},
		{[]string{"text/csv;q=high, */*;q=0.1"}, false},
	} {
		require.Equal(t, c.want, prefersCSV(c.accept), "%q", c.accept)
	}
}

func FuzzAccept(f *testing.F) {
	for _, accept := range []string{"text/csv", "*/*;q=0.1", "text/csv;header=present;q=0.5,application/json", "a/b;\"", ",,;q="} {
		f.Add(accept)
	}
	f.Fuzz(func(t *testing.T, accept string) {
		for _, r := range []representation{inJSON, inCSV} {
			weight := r.weight([]string{accept})
			require.True(t, weight >= 0 && weight <= 1000)
		}
	})
}
