package httpapi

import (
	"cmp"
	"net/http"
	"time"

	"github.com/musique/musique/commands"
	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/projections/audiolibrary"
	"github.com/musique/musique/projections/tokens"
)

// audioFormats are the formats that audio is told apart by.
var audioFormats = []string{"mp3", "wav", "ogg", "aac"}

// seconds is a length of time as the API writes it: seconds, to the millisecond.
func seconds(d time.Duration) float64 { return float64(d.Milliseconds()) / 1000 }

type audioData struct {
	AudioID     string      `json:"audioId"`
	Name        string      `json:"name"`
	Description string      `json:"description"`
	Category    string      `json:"category"`
	URL         string      `json:"url"`
	Duration    float64     `json:"duration"` // seconds
	Size        int64       `json:"size"`
	Format      string      `json:"format"`
	SHA256      string      `json:"sha256"`
	CreatedAt   timestamp   `json:"createdAt"`
	Stats       *audioStats `json:"stats,omitempty"`
}

type audioStats struct {
	TimesPlayed     int64      `json:"timesPlayed"`
	LastPlayedAt    *timestamp `json:"lastPlayedAt"`
	TotalRecipients int64      `json:"totalRecipients"`
}

// uploadAudio takes a file into the library.
func (s *Server) uploadAudio(c *call) error {
	caller, err := c.partner()
	if err != nil {
		return err
	}
	if err := s.countUpload(c, caller.Plan.UploadsPerHour); err != nil {
		return err
	}
	upload, err := readForm(c.r.Header, c.r.Body, formShape{
		texts: []string{"name", "description", "category"}, file: "file", maxFileSize: caller.Plan.UploadBytes, folder: s.spoolDir,
	})
	if err != nil {
		return err
	}
	defer upload.Close()
	details := audio.Details{Name: upload.fields["name"], Description: upload.fields["description"], Category: upload.fields["category"]}
	cmd := commands.UploadAudio{Caller: caller, Details: details, Size: upload.size, SHA256: upload.sha256}
	if upload.file != nil {
		cmd.File = upload.file
	}
	if !upload.given["file"] && !upload.cut {
		upload.failed.Add("file", fault.MissingField, "Give the audio file in the part named file.")
	}
	var unread error
	err = upload.err(func(fields *fault.Fields) { _, unread = cmd.Check(fields) })
	if err := cmp.Or(unread, err); err != nil {
		return err
	}
	made, err := s.commands.UploadAudio.Handle(c.ctx(), cmd)
	if err != nil {
		return err
	}
	c.replayed(made.Replayed)
	return c.data(http.StatusCreated, audioData{
		AudioID: made.AudioID, Name: made.Name, Description: made.Description, Category: made.Category, URL: s.mediaURL(c, made.BlobKey, partnerURLEnd(s.now())),
		Duration: seconds(time.Duration(made.DurationMs) * time.Millisecond), Size: made.Size, Format: made.Format, SHA256: made.SHA256, CreatedAt: timestamp(made.CreatedAt),
	})
}

// countUpload counts an upload against the token's limit of the hour, which is one more window of its limits.
func (s *Server) countUpload(c *call, limit int) error {
	now := s.now()
	w, err := tokens.CountUpload(c.ctx(), s.pool, c.caller.TokenID, limit, now)
	if w.Limit > 0 {
		w.Name = "uploads"
		c.windows = append(c.windows, w)
		setRateHeaders(c.w.Header(), c.windows, now)
	}
	return err
}

// listAudio lists the library, newest first.
func (s *Server) listAudio(c *call) error {
	q := c.query()
	limit, cursor := q.limit(), c.cursor(q)
	filter := audiolibrary.Filter{
		Category: q.oneOf("category", audio.Categories...), Format: q.oneOf("format", audioFormats...), Query: q.open("q"),
		CreatedAfter: q.moment("createdAfter"), CreatedBefore: q.moment("createdBefore"),
	}
	if err := q.err(); err != nil {
		return err
	}
	found, next, err := audiolibrary.List(c.ctx(), s.pool, c.caller.CompanyID, c.caller.Environment, filter, cursor, limit)
	if err != nil {
		return err
	}
	all := make([]audioData, len(found))
	for i, item := range found {
		all[i] = s.audioOf(c, item)
	}
	return c.list(all, limit, next)
}

// getAudio shows one piece of audio with what became of it.
func (s *Server) getAudio(c *call) error {
	item, err := audiolibrary.Get(c.ctx(), s.pool, c.caller.CompanyID, c.caller.Environment, c.pathVar("audioId"))
	if err != nil {
		return err
	}
	data := s.audioOf(c, item)
	data.Stats = &audioStats{item.Stats.TimesPlayed, optionalTime(item.Stats.LastPlayedAt), item.Stats.TotalRecipients}
	return c.data(http.StatusOK, data)
}

func (s *Server) audioOf(c *call, item audiolibrary.Item) audioData {
	return audioData{
		AudioID: item.AudioID, Name: item.Name, Description: item.Description, Category: item.Category, URL: s.mediaURL(c, item.BlobKey, partnerURLEnd(s.now())),
		Duration: seconds(item.Duration), Size: item.Size, Format: item.Format, SHA256: item.SHA256, CreatedAt: timestamp(item.CreatedAt),
	}
}

// deleteAudio takes audio out of the library.
func (s *Server) deleteAudio(c *call) error {
	caller, err := c.partner()
	if err != nil {
		return err
	}
	id := c.pathVar("audioId")
	if err := s.commands.DeleteAudio.Handle(c.ctx(), commands.DeleteAudio{Caller: caller, AudioID: id}); err != nil {
		return err
	}
	return c.data(http.StatusOK, map[string]any{"deleted": true, "audioId": id})
}
