package commands

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/musique/musique/domain/audio"
	"github.com/musique/musique/domain/fault"
	"github.com/musique/musique/infra/audiofile"
	"github.com/musique/musique/infra/telemetry"
)

// blobTimeout bounds one write or removal in blob storage.
const blobTimeout = time.Minute

// UploadAudio adds audio to a company's library.
type UploadAudio struct {
	Caller  Caller `json:"-"`
	Details audio.Details
	// File holds the bytes; Size is how many, SHA256 their digest in lower-case hex.
	File   io.ReaderAt `json:"-"`
	Size   int64
	SHA256 string
}

// Check notes what is wrong with the upload, its file among the rest if it is there, and tells what audio that is. An error is that it could not be read.
func (cmd UploadAudio) Check(fields *fault.Fields) (audiofile.Info, error) {
	cmd.Details.Check(fields)
	if cmd.File == nil {
		return audiofile.Info{}, nil
	}
	info, err := audiofile.Inspect(cmd.File, cmd.Size)
	var notAudio *audiofile.NotAudioError
	switch {
	case errors.As(err, &notAudio):
		fields.Add("file", fault.InvalidFormat, "The file is not whole MP3, WAV, OGG or AAC audio: %s.", notAudio.Reason)
	case errors.Is(err, audiofile.ErrTooLong):
		fields.Add("file", fault.OutOfRange, "The audio is longer than %d minutes; send a shorter one.", audiofile.MaxDuration/time.Minute)
	case err != nil:
		return audiofile.Info{}, fmt.Errorf("inspect upload: %w", err)
	}
	return info, nil
}

// AudioUploaded is the audio as it stands in the library.
type AudioUploaded struct {
	audio.Uploaded
	CreatedAt time.Time
	Replayed  bool
}

// UploadAudioHandler carries out UploadAudio.
type UploadAudioHandler struct{ *tools }

// Handle inspects the bytes, stores them, and only then records the upload: audio that is in the library has its bytes. Bytes whose upload was not
// recorded are removed, here or by the cleanup worker.
func (h UploadAudioHandler) Handle(ctx context.Context, cmd UploadAudio) (_ AudioUploaded, err error) {
	ctx, span := telemetry.Start(ctx, "command UploadAudio")
	defer span.End()
	var fields fault.Fields
	info, err := cmd.Check(&fields)
	if err != nil {
		return AudioUploaded{}, err
	}
	if err := fields.Err(); err != nil {
		return AudioUploaded{}, err
	}
	cmd.Details = cmd.Details.Normal()
	identity, err := h.identify(cmd.Caller, "upload audio", cmd)
	if err != nil {
		return AudioUploaded{}, err
	}
	id := identity.id("aud_")
	if history, err := h.earlier(ctx, identity, audio.Stream(id)); err != nil || history != nil {
		state, loadErr := audio.Load(history)
		h.settle(ctx, end(history), Library)
		return AudioUploaded{Uploaded: state.Uploaded, CreatedAt: state.CreatedAt, Replayed: true}, errors.Join(err, loadErr)
	}
	used, err := h.Reads.Quota(ctx, cmd.Caller.CompanyID, cmd.Caller.Environment, h.now())
	if err != nil {
		return AudioUploaded{}, err
	}
	release, err := h.reserve(ctx, cmd.Caller, id, used, Used{Uploads: 1, StorageBytes: cmd.Size})
	if err != nil {
		return AudioUploaded{}, err
	}
	defer func() { release(err) }()
	// From here on the caller's leaving stops nothing: bytes without an event, or the other way round, is what must not be.
	ctx = context.WithoutCancel(ctx)
	uploaded := audio.Uploaded{
		AudioID: id, Name: cmd.Details.Name, Description: cmd.Details.Description, Category: cmd.Details.Category,
		Format: info.Format, ContentType: contentTypes[info.Format], DurationMs: info.Duration.Milliseconds(), Size: cmd.Size, SHA256: cmd.SHA256,
		BlobKey: BlobKey(cmd.Caller, id, cmd.SHA256),
	}
	putCtx, cancel := context.WithTimeout(ctx, blobTimeout)
	err = h.Blobs.Put(putCtx, uploaded.BlobKey, io.NewSectionReader(cmd.File, 0, cmd.Size), uploaded.ContentType)
	cancel()
	if err != nil {
		return AudioUploaded{}, fmt.Errorf("store upload: %w", err)
	}
	meta := h.metadata(cmd.Caller)
	position, history, err := h.create(ctx, identity, audio.Stream(id), meta, uploaded)
	if err != nil {
		// After an error whose outcome is unknown the bytes must stay: the upload may be recorded. The cleanup worker finds out. Where another request has
		// the key, ours are not wanted unless they are the same.
		if state, loadErr := audio.Load(history); history != nil && loadErr == nil && state.BlobKey != uploaded.BlobKey {
			h.removeBlob(ctx, uploaded.BlobKey)
		}
		return AudioUploaded{}, err
	}
	h.settle(ctx, position, Library)
	if history != nil {
		state, err := audio.Load(history)
		return AudioUploaded{Uploaded: state.Uploaded, CreatedAt: state.CreatedAt, Replayed: true}, err
	}
	return AudioUploaded{Uploaded: uploaded, CreatedAt: meta.Time}, nil
}

// contentTypes are the media types (RFC 3003, RFC 5334, RFC 2361 and IANA's registry) that audio is served with.
var contentTypes = map[string]string{"mp3": "audio/mpeg", "wav": "audio/wav", "ogg": "audio/ogg", "aac": "audio/aac"}

// BlobPrefix begins the keys of all bytes of audio.
const BlobPrefix = "audio/"

// BlobKey is where the bytes of an upload lie.
func BlobKey(c Caller, audioID, sha256 string) string {
	return fmt.Sprintf(BlobPrefix+"%s/%s/%s/%s", c.CompanyID, c.Environment, audioID, sha256)
}

// ParseBlobKey reads whose bytes lie under a BlobKey; ok is false for another key.
func ParseBlobKey(key string) (companyID, audioID string, ok bool) {
	parts := strings.Split(key, "/")
	if len(parts) != 5 || parts[0]+"/" != BlobPrefix {
		return "", "", false
	}
	return parts[1], parts[3], true
}

func (t *tools) removeBlob(ctx context.Context, key string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), blobTimeout)
	defer cancel()
	if err := t.Blobs.Delete(ctx, key); err != nil {
		t.Log.WarnContext(ctx, "bytes that nothing refers to could not be removed; the cleanup worker will", "key", key, "error", err)
	}
}
