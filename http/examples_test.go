package httpapi_test

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	openapi "github.com/pb33f/libopenapi/datamodel/high/v3"
	"github.com/stretchr/testify/require"

	"github.com/musique/musique/docs"
)

// shop is a partner with one of each thing, to be put in the place of what the examples name.
type shop struct {
	partner
	device device
	ids    map[string]string // by the name of the path's variable
	other  string            // the ID of another token
}

func (w *world) shop(t *testing.T) shop {
	t.Helper()
	p := w.partner(t)
	ok[object](t, p.post("/locations", object{"externalId": "store_001", "name": "Main Street", "tags": []string{"north"}}), http.StatusCreated)
	p.location("import") // which is at a path of its own in the document
	s := shop{partner: p, device: p.device("store_001")}
	sent := p.send(p.upload("Sent").AudioID, object{"externalIds": []string{"store_001"}})
	deliveries := ok[[]struct{ DeliveryID string }](t, p.get("/sends/"+sent.SendID+"/deliveries"), http.StatusOK)
	s.other = ok[struct{ TokenID string }](t, p.as("other", object{}).post("/test", nil), http.StatusOK).TokenID
	s.ids = map[string]string{
		"audioId": p.upload("Not sent").AudioID, "sendId": sent.SendID, "externalId": "store_001", "deviceId": s.device.DeviceID, "deliveryId": deliveries[0].DeliveryID, "tokenId": s.other,
		"companyId": p.companyID, "environment": "live", // in the URLs that endpoints report at
	}
	return s
}

// fill puts what there is in the place of what the example names.
func (s shop) fill(example any) any {
	body, isObject := example.(object)
	if !isObject {
		return example
	}
	body = maps.Clone(body)
	for name, real := range map[string]any{"companyToken": s.companyToken, "tokenId": s.other, "localTime": time.Now().Add(48 * time.Hour).Format("2006-01-02T15:04"), "scheduleAt": time.Now().Add(2 * time.Hour).Format(time.RFC3339), "at": time.Now().Format(time.RFC3339)} {
		if _, named := body[name]; named {
			body[name] = real
		}
	}
	return body
}

// Each example of a request does what the document says, at each of its paths.
func examplesWork(t *testing.T, w *world) {
	d, tried, looked := document(t, w.url), 0, w.shop(t)
	for path, item := range d.model.Paths.PathItems.FromOldest() {
		for method, op := range item.GetOperations().FromOldest() {
			examples, kind := map[string]any{"": nil}, ""
			if op.RequestBody != nil {
				examples, kind = requestExamples(t, op)
			}
			for name, example := range examples {
				s := looked
				if method != "get" { // which leaves everything as it is
					s = w.shop(t)
				}
				if op.OperationId == "ChangeSend" {
					s.ids["sendId"] = s.send(s.ids["audioId"], object{"all": true, "scheduleAt": time.Now().Add(time.Hour)}).SendID
				}
				if strings.HasPrefix(op.OperationId, "CreateLocation") {
					ok[object](t, s.del("/locations/store_001"), http.StatusOK)
				}
				where := regexp.MustCompile(`{(\w+)}`).ReplaceAllStringFunc(path, func(variable string) string {
					id := s.ids[strings.Trim(variable, "{}")]
					require.NotEmpty(t, id, variable)
					return id
				})
				what := fmt.Sprintf("%s %s %s", method, path, name)
				r, status := s.try(t, strings.ToUpper(method), where, op, kind, example)
				require.NotNil(t, op.Responses.Codes.GetOrZero(strconv.Itoa(status)), "%s answered %d %s", what, status, r.body)
				require.Less(t, status, 300, "%s answered %d %s", what, status, r.body)
				tried++
			}
		}
	}
	require.Greater(t, tried, 50)
}

func requestExamples(t *testing.T, op *openapi.Operation) (examples map[string]any, kind string) {
	examples = map[string]any{}
	for name, media := range op.RequestBody.Content.FromOldest() {
		kind = name
		for example, said := range media.Examples.FromOldest() {
			var value any
			require.NoError(t, said.Value.Decode(&value))
			examples[example] = value
		}
	}
	require.NotEmpty(t, examples)
	return examples, kind
}

// try sends an example as the operation asks it to be sent.
func (s shop) try(t *testing.T, method, path string, op *openapi.Operation, kind string, example any) (reply, int) {
	t.Helper()
	token, headers := "", []header{}
	for _, needed := range op.Security {
		if _, byToken := needed.Requirements.Get("apiKey"); byToken {
			token = s.token
		} else {
			headers = append(headers, header{"Authorization", "Bearer " + s.device.Token})
		}
	}
	if op.Responses.Codes.GetOrZero("200") != nil && op.Responses.Codes.GetOrZero("200").Content.GetOrZero("text/event-stream") != nil {
		stream := s.w.listen(t, s.w.url, s.device.Token, "") // it has no end to be waited for
		stream.next("deliver")
		stream.stop()
		return reply{}, http.StatusOK
	}
	body := s.fill(example)
	if kind == "multipart/form-data" {
		var f form
		for name, value := range body.(object) { //nolint:forcetypeassert // a form's example is an object
			p := part{name: name, value: fmt.Sprint(value)}
			if name == "file" {
				p = part{name: name, file: wav(0.5, 440)}
			}
			f = append(f, p)
		}
		body = f
	}
	r := call(t, method, s.w.url+path, token, body, headers...)
	return r, r.StatusCode
}

// Each command of the guides does what the guide says, in the order that they stand there.
func guidesWork(t *testing.T, w *world) {
	curl, err := exec.LookPath("curl")
	require.NoError(t, err)
	bash, err := exec.LookPath("bash")
	require.NoError(t, err)
	for _, guide := range docs.Guides {
		t.Run(guide, func(t *testing.T) {
			t.Parallel()
			raw, err := docs.Partners.ReadFile("partners/" + guide + ".md")
			require.NoError(t, err)
			p := w.partner(t)
			for i := range 3 {
				p.upload(fmt.Sprintf("clip %d", i)) // something for the lists
			}
			commands, folder := w.commands(t, p, string(raw)), t.TempDir()
			sample, err := os.ReadFile("../samples/welcome.mp3")
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(folder, "welcome.mp3"), sample, 0o600))
			// A curl that notes the status that was expected, the one that was answered, and what was asked.
			require.NoError(t, os.Mkdir(filepath.Join(folder, "bin"), 0o700))
			noting := "#!/bin/sh\nasked=$*\nexec " + curl + ` "$@" --write-out "%{stderr}${EXPECT:-2..} %{http_code} ${asked##* http}\n" 2>>"$STATUSES"` + "\n"
			require.NoError(t, os.WriteFile(filepath.Join(folder, "bin", "curl"), []byte(noting), 0o700))
			statuses := filepath.Join(folder, "statuses")
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			run := exec.CommandContext(ctx, bash, "-eu", "-c", commands)
			run.Dir, run.Env = folder, append(os.Environ(), "PATH="+filepath.Join(folder, "bin")+":"+os.Getenv("PATH"), "STATUSES="+statuses)
			out, err := run.CombinedOutput()
			require.NoError(t, err, "%s\n%s", commands, out)
			noted, err := os.Open(statuses)
			require.NoError(t, err)
			defer noted.Close()
			ran := 0
			for lines := bufio.NewScanner(noted); lines.Scan(); ran++ {
				words := strings.SplitN(lines.Text(), " ", 3)
				require.Len(t, words, 3, lines.Text())
				require.Regexp(t, "^"+words[0]+"$", words[1], "%s\n%s", lines.Text(), out)
			}
			require.GreaterOrEqual(t, ran, strings.Count(commands, "curl "))
			require.Positive(t, ran)
		})
	}
}

var (
	shellBlock = regexp.MustCompile("(?s)```sh\n(.*?)```")
	anyBlock   = regexp.MustCompile("(?s)```\\w*\n(.*?)```")
	answers    = regexp.MustCompile(`^# answers ([0-9]{3})\b`)
)

// commands are a guide's, with a real server and real tokens in the place of its own, and each curl with the status that it is to be answered with.
func (w *world) commands(t *testing.T, p partner, guide string) string {
	t.Helper()
	require.NotContains(t, anyBlock.ReplaceAllString(shellBlock.ReplaceAllString(guide, ""), ""), "curl -", "a command in no block")
	var blocks []string
	for _, block := range shellBlock.FindAllStringSubmatch(guide, -1) {
		blocks = append(blocks, block[1])
	}
	require.NotEmpty(t, blocks)
	text := strings.NewReplacer("https://api.musique.app", w.url, "comp_…", p.companyToken, "msk_live_…", p.token).Replace(strings.Join(blocks, "\n"))
	require.NotContains(t, text, "…")
	lines := strings.Split(text, "\n")
	expected := ""
	for i, line := range lines {
		switch found := answers.FindStringSubmatch(line); {
		case found != nil:
			expected = found[1]
		case strings.Contains(line, "curl ") && expected != "":
			lines[i], expected = strings.Replace(line, "curl ", "EXPECT="+expected+" curl ", 1), ""
		}
	}
	require.Empty(t, expected)
	return strings.Join(lines, "\n")
}
