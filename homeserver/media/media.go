// Package media is the content repository: uploads that stream to disk and are kept once per content, downloads with
// ranges, thumbnails, previews of URLs.
package media

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// Config is the content repository's part of the configuration. Zero values mean the defaults named.
type Config struct {
	MaxUpload     int64         // bytes of a file; 100 MiB
	MaxPending    int           // announced uploads of a user at a time; 20
	PendingExpiry time.Duration // how long an announced upload may take; 24 h
	ImageMemory   int64         // bytes that decoding images may take at a time; 512 MiB
	Previews      bool          // whether URLs are previewed
	MaxPage       int64         // bytes read of a previewed page; 1 MiB
	MaxPageImage  int64         // bytes of its image; 10 MiB
	PreviewTime   time.Duration // for page and image together; 15 s
	Retention     time.Duration // how long files are kept that nobody fetches; 0: for ever
}

func (c Config) withDefaults() Config {
	def := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.MaxUpload, 100<<20)
	def(&c.ImageMemory, 512<<20)
	def(&c.MaxPage, 1<<20)
	def(&c.MaxPageImage, 10<<20)
	if c.MaxPending == 0 {
		c.MaxPending = 20
	}
	if c.PendingExpiry == 0 {
		c.PendingExpiry = 24 * time.Hour
	}
	if c.PreviewTime == 0 {
		c.PreviewTime = 15 * time.Second
	}
	return c
}

// Deps is what a Media needs.
type Deps struct {
	Store      *store.Store
	Log        *slog.Logger
	Blobs      Blobs
	ServerName string
	// Client fetches previewed pages; it must refuse addresses that are not public.
	Client *http.Client
	Config Config
}

// Media serves the content repository.
type Media struct {
	Deps
	images   *semaphore.Weighted // bytes of memory for decoding
	making   singleflight.Group  // thumbnails in the making, by blob key
	fetching singleflight.Group  // previews in the making, by URL
	pages    *semaphore.Weighted // previews at a time
	used     uses
}

const maxPreviews = 8

// New makes a Media. It starts nothing.
func New(d Deps) *Media {
	d.Config = d.Config.withDefaults()
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	return &Media{Deps: d, images: semaphore.NewWeighted(d.Config.ImageMemory), pages: semaphore.NewWeighted(maxPreviews)}
}

// Routes is the table of the module's endpoints. Spec: client-server API, "Content repository".
func (m *Media) Routes() []web.Route {
	const v1, legacy = "/_matrix/client/v1/media", "/_matrix/media/v3"
	const file = "/{serverName}/{mediaId}"
	authed := m.serve(false)
	frozen := m.serve(true)
	return []web.Route{
		{Pattern: "POST " + legacy + "/upload", Auth: web.NoGuest, Rate: web.RateMedia, Handler: m.upload},
		{Pattern: "POST /_matrix/media/v1/create", Auth: web.NoGuest, Rate: web.RateMedia, Handler: m.create},
		{Pattern: "PUT " + legacy + "/upload" + file, Auth: web.NoGuest, Rate: web.RateMedia, Handler: m.uploadTo},
		{Pattern: "GET " + v1 + "/download" + file, Auth: web.User, Rate: web.RateRead, Handler: authed.download},
		{Pattern: "GET " + v1 + "/download" + file + "/{fileName}", Auth: web.User, Rate: web.RateRead, Handler: authed.download},
		{Pattern: "GET " + v1 + "/thumbnail" + file, Auth: web.User, Rate: web.RateRead, Handler: authed.thumbnail},
		{Pattern: "GET " + v1 + "/config", Auth: web.User, Rate: web.RateRead, Handler: m.config},
		{Pattern: "GET " + v1 + "/preview_url", Auth: web.NoGuest, Rate: web.RateMedia, Handler: m.preview},
		{Pattern: "GET " + legacy + "/download" + file, Auth: web.Optional, Rate: web.RateRead, Handler: frozen.download},
		{Pattern: "GET " + legacy + "/download" + file + "/{fileName}", Auth: web.Optional, Rate: web.RateRead, Handler: frozen.download},
		{Pattern: "GET " + legacy + "/thumbnail" + file, Auth: web.Optional, Rate: web.RateRead, Handler: frozen.thumbnail},
		{Pattern: "GET " + legacy + "/config", Auth: web.User, Rate: web.RateRead, Handler: m.config},
		{Pattern: "GET " + legacy + "/preview_url", Auth: web.NoGuest, Rate: web.RateMedia, Handler: m.preview},
	}
}

// config handles GET /_matrix/client/v1/media/config and its legacy twin.
func (m *Media) config(w http.ResponseWriter, _ *http.Request) error {
	return web.WriteJSON(w, map[string]int64{"m.upload.size": m.Config.MaxUpload})
}

const (
	cleanEvery  = time.Hour
	cleanChunk  = 500
	keepPreview = 30 * 24 * time.Hour // of images of previews: clients may show them for long
	keepTemp    = 24 * time.Hour
)

// Run cleans up and writes down which files are used, until ctx ends.
func (m *Media) Run(ctx context.Context) error {
	tick, note := time.NewTimer(time.Minute), time.NewTicker(noteUseEvery)
	defer tick.Stop()
	defer note.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil // what is not written yet is noted when the file is fetched again
		case <-note.C:
			if err := m.writeUses(ctx, time.Now()); err != nil && ctx.Err() == nil {
				m.Log.Warn("note which files are used", "error", err)
			}
			continue
		case <-tick.C:
		}
		if err := m.Clean(ctx, time.Now()); err != nil && ctx.Err() == nil {
			m.Log.Warn("clean up media", "error", err)
		}
		tick.Reset(cleanEvery)
	}
}

// Clean drops what has expired by the given time: announced uploads that never came, previews with their images, temporary
// files of interrupted uploads, files that nobody has fetched for longer than the configuration keeps them.
func (m *Media) Clean(ctx context.Context, now time.Time) error {
	errs := []error{m.Blobs.Clean(ctx, now.Add(-keepTemp))}
	for ctx.Err() == nil {
		var expired int64
		var hashes [][]byte
		err := m.Store.Write(ctx, func(tx *store.Tx) (err error) {
			if expired, err = tx.DeleteExpiredMedia(now.UnixMilli(), cleanChunk); err != nil {
				return err
			}
			hashes, err = tx.DeleteOldPreviews(now.UnixMilli(), now.Add(-keepPreview).UnixMilli(), cleanChunk)
			return err
		})
		if err != nil {
			errs = append(errs, err)
			break
		}
		errs = append(errs, m.dropContents(ctx, hashes, now.Add(-keepTemp)))
		if expired < cleanChunk && len(hashes) < cleanChunk {
			break
		}
	}
	return errors.Join(append(errs, m.expire(ctx, now))...)
}

// newMediaID gives 24 characters that cannot be guessed.
func newMediaID() string {
	var b [18]byte
	_, _ = rand.Read(b[:]) // never fails on supported systems
	return base64.RawURLEncoding.EncodeToString(b[:])
}
