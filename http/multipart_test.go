package httpapi

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/musique/musique/domain/fault"
)

const testBoundary = "b"

// body writes a multipart body: of each three words a part's name, its file name ("" for a text), its content.
func multipartBody(words ...string) string {
	var b strings.Builder
	for i := 0; i < len(words); i += 3 {
		b.WriteString("--" + testBoundary + "\r\nContent-Disposition: form-data; name=\"" + words[i] + "\"")
		if words[i+1] != "" {
			b.WriteString("; filename=\"" + words[i+1] + "\"")
		}
		b.WriteString("\r\n\r\n" + words[i+2] + "\r\n")
	}
	return b.String() + "--" + testBoundary + "--\r\n"
}

func readTestForm(t *testing.T, body string, maxFile int64) (*form, error) {
	t.Helper()
	f, err := readForm(http.Header{"Content-Type": {"multipart/form-data; boundary=" + testBoundary}}, strings.NewReader(body),
		formShape{texts: []string{"name", "category"}, file: "file", maxFileSize: maxFile, folder: t.TempDir()})
	if err == nil {
		t.Cleanup(f.Close)
	}
	return f, err
}

func TestAFormIsRead(t *testing.T) {
	f, err := readTestForm(t, multipartBody("file", "x.mp3", "bytes", "name", "", "Clip"), 5)
	require.NoError(t, err)
	require.Empty(t, f.failed)
	require.Equal(t, map[string]string{"name": "Clip"}, f.fields)
	content, err := io.ReadAll(f.file)
	require.NoError(t, err)
	require.Equal(t, "bytes", string(content))
	sum := sha256.Sum256(content)
	require.Equal(t, hex.EncodeToString(sum[:]), f.sha256)
	require.Equal(t, int64(5), f.size)
}

func TestAFormTellsAllItsFields(t *testing.T) {
	f, err := readTestForm(t, multipartBody("name", "", "a", "name", "", "b", "odd", "", "1", "category", "", "\xff", "file", "x", "abc"), 5)
	require.NoError(t, err)
	failed := map[string]fault.Code{}
	for _, field := range f.failed {
		failed[field.Param] = field.Code
	}
	require.Equal(t, map[string]fault.Code{"name": fault.InvalidFormat, "odd": fault.InvalidFormat, "category": fault.InvalidFormat}, failed)
}

func TestAFormHasBounds(t *testing.T) {
	f, err := readTestForm(t, multipartBody("odd", "", "1", "file", "x", "123456", "name", "", "after it"), 5)
	require.NoError(t, err)
	require.Equal(t, "after it", f.fields["name"])
	told, ok := errors.AsType[*fault.Error](f.err(func(fields *fault.Fields) { fields.Add("category", fault.MissingField, "there is none") }))
	require.True(t, ok)
	require.Equal(t, fault.OutOfRange, told.Code)
	require.Equal(t, http.StatusRequestEntityTooLarge, told.Status)
	require.Len(t, told.Fields, 3)
	f, err = readTestForm(t, multipartBody("odd", "", "1", "file", "x", strings.Repeat("x", maxDrainBytes+6), "name", "", "after it"), 5)
	require.NoError(t, err)
	told, ok = errors.AsType[*fault.Error](f.err(func(fields *fault.Fields) { fields.Add("name", fault.MissingField, "there is none") }))
	require.True(t, ok)
	require.Equal(t, http.StatusRequestEntityTooLarge, told.Status)
	require.Len(t, told.Fields, 2, "what follows so large a file is not read, and not said to be missing")
	f, err = readTestForm(t, multipartBody("name", "", strings.Repeat("n", maxFormFieldBytes+1), "file", "x", "12345"), 5)
	require.NoError(t, err)
	require.Equal(t, fault.OutOfRange, f.failed[0].Code)
	_, err = readTestForm(t, multipartBody("name", "", "Clip", "", "", "nameless"), 5)
	require.EqualError(t, err, "invalid_format: Part 2 of the form has no name that can be read; give it one, or leave it out.")
	var many []string
	for range maxFormParts + 1 {
		many = append(many, "odd", "", "1")
	}
	_, err = readTestForm(t, multipartBody(many...), 5)
	require.Equal(t, fault.OutOfRange, fault.CodeOf(err))
}

func TestABrokenFormIsRefused(t *testing.T) {
	whole := multipartBody("name", "", "Clip", "file", "x", "12345")
	for cut := range len(whole) - len("--\r\n") {
		_, err := readTestForm(t, whole[:cut], 5)
		require.Equal(t, fault.InvalidFormat, fault.CodeOf(err), "cut at %d", cut)
	}
	for kind, code := range map[string]int{"": http.StatusUnsupportedMediaType, "text/plain": http.StatusUnsupportedMediaType, "multipart/form-data": 0} {
		_, err := readForm(http.Header{"Content-Type": {kind}}, strings.NewReader(whole), formShape{})
		require.Equal(t, fault.InvalidFormat, fault.CodeOf(err))
		require.Equal(t, code, err.(*fault.Error).Status) //nolint:errorlint,forcetypeassert // made here, not wrapped
	}
}

func FuzzReadForm(f *testing.F) {
	f.Add([]byte(multipartBody("name", "", "Clip", "file", "x", "12345")))
	f.Add([]byte(multipartBody("file", "x", "123456", "file", "y", "")))
	f.Add([]byte("--b\r\nContent-Disposition: form-data; name=file\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=41\r\n--b--"))
	f.Fuzz(func(t *testing.T, body []byte) {
		read, err := readForm(http.Header{"Content-Type": {"multipart/form-data; boundary=" + testBoundary}}, bytes.NewReader(body),
			formShape{texts: []string{"name"}, file: "file", maxFileSize: 16, folder: t.TempDir()})
		if err != nil {
			require.NotEqual(t, fault.Internal, fault.CodeOf(err), "%v", err)
			return
		}
		defer read.Close()
		require.LessOrEqual(t, read.size, int64(16))
		if read.given["file"] && !read.tooLarge {
			content, err := io.ReadAll(read.file)
			require.NoError(t, err)
			require.Len(t, content, int(read.size))
		}
	})
}
