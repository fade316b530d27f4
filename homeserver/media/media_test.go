package media

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	alice  = id.UserID("@alice:example.com")
	bob    = id.UserID("@bob:example.com")
	nobody = id.UserID("")
)

type world struct {
	*Media
	t   *testing.T
	dir string
	srv *httptest.Server
}

func newWorld(t *testing.T, cfg store.Config, conf Config) *world {
	t.Helper()
	dir := t.TempDir()
	blobs, err := OpenLocal(dir)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir}
	w.Media = New(Deps{Store: storetest.Open(t, cfg), Blobs: blobs, ServerName: "example.com", Client: http.DefaultClient, Config: conf})
	mux, err := web.NewMux(web.Config{Authenticate: func(_ *http.Request, token string) (*web.Identity, error) {
		switch token {
		case "guest":
			return &web.Identity{UserID: "@1:example.com", Guest: true}, nil
		case alice.String(), bob.String():
			return &web.Identity{UserID: id.UserID(token)}, nil
		}
		return nil, mxerr.UnknownToken("no such token", false)
	}, Logger: slog.New(slog.DiscardHandler), OnPanic: func(v any) { t.Errorf("panic: %v", v) }}, w.Routes())
	if err != nil {
		t.Fatal(err)
	}
	w.srv = httptest.NewServer(mux)
	t.Cleanup(w.srv.Close)
	return w
}

type answer struct {
	*http.Response
	body []byte
}

func (a answer) errcode() string { return gjson.GetBytes(a.body, "errcode").Str }

// req makes a request; header holds pairs of names and values.
func (w *world) req(user id.UserID, method, path string, body io.Reader, header ...string) answer {
	w.t.Helper()
	r, err := http.NewRequest(method, w.srv.URL+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	if user != nobody {
		r.Header.Set("Authorization", "Bearer "+user.String())
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer{resp, b}
}

// want makes a request and checks status and errcode.
func (w *world) want(status int, errcode string, user id.UserID, method, path string, body string) answer {
	w.t.Helper()
	a := w.req(user, method, path, strings.NewReader(body))
	if a.StatusCode != status || a.errcode() != errcode {
		w.t.Fatalf("%s %s: %d %s, want %d %q", method, path, a.StatusCode, clip(string(a.body)), status, errcode)
	}
	return a
}

// put uploads and gives "server/media id".
func (w *world) put(content []byte, contentType, filename string) string {
	w.t.Helper()
	path := "/_matrix/media/v3/upload"
	if filename != "" {
		path += "?filename=" + filename
	}
	a := w.req(alice, "POST", path, bytes.NewReader(content), "Content-Type", contentType)
	uri, ok := strings.CutPrefix(gjson.GetBytes(a.body, "content_uri").Str, "mxc://")
	if a.StatusCode != 200 || !ok {
		w.t.Fatalf("upload: %d %s", a.StatusCode, a.body)
	}
	return uri
}

const v1 = "/_matrix/client/v1/media/"

// files counts the blobs and temporary files on the disk.
func (w *world) files() (blobs, temps int) {
	err := filepath.WalkDir(w.dir, func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil || d.IsDir():
		case filepath.Base(filepath.Dir(path)) == "tmp":
			temps++
		default:
			blobs++
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return blobs, temps
}

func TestUploadDownload(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		w := newWorld(t, cfg, Config{})
		text := "早上好, " + strings.Repeat("0123456789", 100_000)
		uri := w.put([]byte(text), "text/plain; charset=utf-8", "%E4%BC%9A%E8%AE%AE%20%22a%22.txt")
		again := w.put([]byte(text), "application/x-other", "")
		if uri == again {
			t.Error("two uploads have one id")
		}
		if blobs, temps := w.files(); blobs != 1 || temps != 0 {
			t.Errorf("%d blobs and %d temporary files of one content", blobs, temps)
		}

		a := w.req(bob, "GET", v1+"download/"+uri, nil)
		if a.StatusCode != 200 || string(a.body) != text {
			t.Fatalf("download: %d, %d bytes", a.StatusCode, len(a.body))
		}
		for name, want := range map[string]string{
			"Content-Type":                 "text/plain; charset=utf-8",
			"Content-Length":               strconv.Itoa(len(text)),
			"Content-Disposition":          `inline; filename*=UTF-8''%E4%BC%9A%E8%AE%AE%20%22a%22.txt`,
			"Content-Security-Policy":      contentPolicy,
			"Cross-Origin-Resource-Policy": "cross-origin",
			"X-Content-Type-Options":       "nosniff",
			"Cache-Control":                "private, max-age=86400, immutable",
			"Accept-Ranges":                "bytes",
			"Access-Control-Allow-Origin":  "*",
		} {
			if got := a.Header.Get(name); got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		etag := a.Header.Get("ETag")
		if a := w.req(bob, "GET", v1+"download/"+uri, nil, "If-None-Match", etag); a.StatusCode != 304 || len(a.body) != 0 {
			t.Errorf("If-None-Match: %d", a.StatusCode)
		}
		if a := w.req(bob, "GET", v1+"download/"+uri, nil, "Range", "bytes=11-15"); a.StatusCode != 206 || string(a.body) != text[11:16] {
			t.Errorf("range: %d %q", a.StatusCode, a.body)
		}
		if a := w.req(bob, "GET", v1+"download/"+uri, nil, "Range", "bytes=99999999-"); a.StatusCode != 416 {
			t.Errorf("range beyond the end: %d", a.StatusCode)
		}
		if a := w.req(bob, "HEAD", v1+"download/"+uri, nil); a.StatusCode != 200 || a.ContentLength != int64(len(text)) {
			t.Errorf("HEAD: %d %d", a.StatusCode, a.ContentLength)
		}
		if got := w.req(bob, "GET", v1+"download/"+uri+"/other%20name.txt", nil).Header.Get("Content-Disposition"); got != `inline; filename="other name.txt"` {
			t.Errorf("name of the path: %s", got)
		}
		a = w.req(bob, "GET", v1+"download/"+again, nil)
		if a.Header.Get("Content-Type") != "application/x-other" || a.Header.Get("Content-Disposition") != "attachment" {
			t.Errorf("unsafe type: %v", a.Header)
		}
		w.want(200, "", alice, "GET", v1+"config", "")
		if a := w.want(200, "", alice, "GET", "/_matrix/media/v3/config", ""); string(a.body) != `{"m.upload.size":104857600}` {
			t.Errorf("config: %s", a.body)
		}
		empty := w.put(nil, "", "")
		if a := w.req(bob, "GET", v1+"download/"+empty, nil); a.StatusCode != 200 || len(a.body) != 0 || a.Header.Get("Content-Type") != octetStream {
			t.Errorf("empty file: %d %v", a.StatusCode, a.Header)
		}

		for _, tc := range []struct {
			status  int
			errcode string
			user    id.UserID
			path    string
		}{
			{401, "M_MISSING_TOKEN", nobody, v1 + "download/" + uri},
			{404, "M_NOT_FOUND", bob, v1 + "download/example.com/AAAA"},
			{404, "M_NOT_FOUND", bob, v1 + "download/other.example/" + strings.Split(uri, "/")[1]},
			{400, "M_INVALID_PARAM", bob, v1 + "download/example.com/..%2F..%2Fetc"},
			{400, "M_INVALID_PARAM", bob, v1 + "download/exa%2Fmple.com/AAAA"},
			{400, "M_INVALID_PARAM", bob, v1 + "download/example.com/%00"},
			{400, "M_INVALID_PARAM", bob, v1 + "download/" + uri + "?timeout_ms=-1"},
			{400, "M_INVALID_PARAM", bob, v1 + "download/" + uri + "?timeout_ms=soon"},
			// The endpoints without a token are frozen.
			{404, "M_NOT_FOUND", nobody, "/_matrix/media/v3/download/" + uri},
			{404, "M_NOT_FOUND", nobody, "/_matrix/media/v3/download/" + uri + "/name.txt?allow_redirect=true&allow_remote=false"},
			{400, "M_INVALID_PARAM", nobody, "/_matrix/media/v3/download/" + uri + "?allow_redirect=perhaps"},
			{404, "M_NOT_FOUND", nobody, "/_matrix/media/v3/thumbnail/" + uri + "?width=1&height=1"},
			{401, "M_MISSING_TOKEN", nobody, "/_matrix/media/v3/config"},
			{404, "M_UNRECOGNIZED", alice, v1 + "preview_url?url=https://example.com"},
		} {
			w.want(tc.status, tc.errcode, tc.user, "GET", tc.path, "")
		}
		// Bots from before have a token all the same.
		if a := w.want(200, "", bob, "GET", "/_matrix/media/v3/download/"+uri, ""); string(a.body) != text || a.Header.Get("Cache-Control") != "private, max-age=86400, immutable" {
			t.Errorf("old endpoint with a token: %v %.40s", a.Header, a.body)
		}
		// What is public is served there, what is quarantined nowhere.
		err := w.Store.Write(context.Background(), func(tx *store.Tx) error {
			if _, err := tx.Exec(`UPDATE media SET public = 1`); err != nil {
				return err
			}
			found, err := tx.QuarantineMedia("example.com", strings.Split(again, "/")[1], true)
			if err == nil && !found {
				err = fmt.Errorf("not found")
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if a := w.want(200, "", nobody, "GET", "/_matrix/media/v3/download/"+uri, ""); a.Header.Get("Cache-Control") != "public, max-age=86400, immutable" {
			t.Error(a.Header)
		}
		w.want(404, "M_NOT_FOUND", bob, "GET", v1+"download/"+again, "")
	})
}

// slowBody sends a little and then fails.
type brokenBody struct{ n int }

func (b *brokenBody) Read(p []byte) (int, error) {
	if b.n == 0 {
		return 0, fmt.Errorf("connection lost")
	}
	b.n--
	return copy(p, "xxxx"), nil
}

func TestUploadLimits(t *testing.T) {
	w := newWorld(t, store.Config{DataDir: t.TempDir()}, Config{MaxUpload: 1000})
	big := strings.Repeat("x", 1001)
	w.want(413, "M_TOO_LARGE", alice, "POST", "/_matrix/media/v3/upload", big)
	if a := w.req(alice, "POST", "/_matrix/media/v3/upload", io.MultiReader(strings.NewReader(big))); a.StatusCode != 413 || a.errcode() != "M_TOO_LARGE" {
		t.Errorf("chunked: %d %s", a.StatusCode, a.body)
	}
	w.want(200, "", alice, "POST", "/_matrix/media/v3/upload", big[1:])
	w.want(401, "M_MISSING_TOKEN", nobody, "POST", "/_matrix/media/v3/upload", "x")
	w.want(403, "M_GUEST_ACCESS_FORBIDDEN", "guest", "POST", "/_matrix/media/v3/upload", "x")
	w.want(405, "M_UNRECOGNIZED", alice, "GET", "/_matrix/media/v3/upload", "")
	r, err := http.NewRequest("POST", w.srv.URL+"/_matrix/media/v3/upload", &brokenBody{3})
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+alice.String())
	if resp, err := http.DefaultClient.Do(r); err == nil {
		_ = resp.Body.Close()
		t.Errorf("interrupted upload: %d", resp.StatusCode)
	}
	for range 100 {
		if _, temps := w.files(); temps == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("a temporary file is left")
}

func TestAsyncUpload(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		w := newWorld(t, cfg, Config{MaxPending: 3})
		create := func() (uri string, expires int64) {
			a := w.want(200, "", alice, "POST", "/_matrix/media/v1/create", "")
			return strings.TrimPrefix(gjson.GetBytes(a.body, "content_uri").Str, "mxc://"), gjson.GetBytes(a.body, "unused_expires_at").Int()
		}
		uri, expires := create()
		if d := time.Until(time.UnixMilli(expires)); d < 23*time.Hour || d > 24*time.Hour {
			t.Errorf("expires in %v", d)
		}
		a := w.want(504, "M_NOT_YET_UPLOADED", bob, "GET", v1+"download/"+uri+"?timeout_ms=50", "")
		if a.Header.Get("Content-Disposition") != "" {
			t.Error("an error has a disposition")
		}
		w.want(504, "M_NOT_YET_UPLOADED", bob, "GET", v1+"thumbnail/"+uri+"?timeout_ms=0&width=1&height=1", "")
		w.want(403, "M_FORBIDDEN", bob, "PUT", "/_matrix/media/v3/upload/"+uri, "x")
		w.want(404, "M_NOT_FOUND", alice, "PUT", "/_matrix/media/v3/upload/example.com/AAAA", "x")
		w.want(404, "M_NOT_FOUND", alice, "PUT", "/_matrix/media/v3/upload/other.com/"+strings.Split(uri, "/")[1], "x")

		var wg sync.WaitGroup
		wg.Go(func() { // one who waits gets it when it comes
			if a := w.req(bob, "GET", v1+"download/"+uri, nil); a.StatusCode != 200 || string(a.body) != "later" {
				t.Errorf("waiting: %d %s", a.StatusCode, a.body)
			}
		})
		time.Sleep(50 * time.Millisecond)
		w.want(200, "", alice, "PUT", "/_matrix/media/v3/upload/"+uri+"?filename=a.bin", "later")
		wg.Wait()
		w.want(409, "M_CANNOT_OVERWRITE_MEDIA", alice, "PUT", "/_matrix/media/v3/upload/"+uri, "other")
		direct := w.put([]byte("x"), "", "")
		w.want(409, "M_CANNOT_OVERWRITE_MEDIA", alice, "PUT", "/_matrix/media/v3/upload/"+direct, "other")

		for range 3 {
			uri, _ = create()
		}
		a = w.want(429, "M_LIMIT_EXCEEDED", alice, "POST", "/_matrix/media/v1/create", "")
		if a.Header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
		w.want(200, "", bob, "POST", "/_matrix/media/v1/create", "")
		err := w.Store.Write(context.Background(), func(tx *store.Tx) error {
			_, err := tx.Exec(`UPDATE media SET expires = $1 WHERE usr = $2 AND expires IS NOT NULL`, time.Now().UnixMilli()-1, alice)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		w.want(404, "M_NOT_FOUND", alice, "PUT", "/_matrix/media/v3/upload/"+uri, "x")
		w.want(404, "M_NOT_FOUND", bob, "GET", v1+"download/"+uri, "")
		create()
		if err := w.Clean(context.Background(), time.Now()); err != nil {
			t.Fatal(err)
		}
		var rows int64
		err = w.Store.Read(context.Background(), func(tx *store.Tx) error {
			_, err := tx.Get([]any{&rows}, `SELECT count(*) FROM media`)
			return err
		})
		if err != nil || rows != 4 { // two files, one announced by each
			t.Errorf("%d rows: %v", rows, err)
		}
	})
}

func TestCleanKeepsWhatIsUsed(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		w := newWorld(t, cfg, Config{})
		w.put([]byte("shared"), "", "")
		insert := func(content string) {
			hash, size, err := w.keep(context.Background(), strings.NewReader(content), 100)
			if err != nil {
				t.Fatal(err)
			}
			err = w.Store.Write(context.Background(), func(tx *store.Tx) error {
				return tx.InsertMedia(store.Media{Origin: "example.com", ID: newMediaID(), Created: time.Now().UnixMilli(), Type: "image/png", Size: size, SHA256: hash})
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		insert("shared")
		insert("old")
		if err := os.WriteFile(filepath.Join(w.dir, "tmp", "upload-1"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := w.Clean(context.Background(), time.Now()); err != nil {
			t.Fatal(err)
		}
		if blobs, temps := w.files(); blobs != 2 || temps != 1 {
			t.Errorf("%d blobs, %d temporary files before their time", blobs, temps)
		}
		if err := w.Clean(context.Background(), time.Now().Add(40*24*time.Hour)); err != nil {
			t.Fatal(err)
		}
		if blobs, temps := w.files(); blobs != 1 || temps != 0 {
			t.Errorf("%d blobs, %d temporary files after their time", blobs, temps)
		}
	})
}

func TestDisposition(t *testing.T) {
	for _, tc := range []struct{ contentType, name, want string }{
		{"image/png", "a.png", `inline; filename="a.png"`},
		{"IMAGE/PNG; x=y", "", "inline"},
		{"image/svg+xml", "a.svg", `attachment; filename="a.svg"`},
		{"text/html", "a", `attachment; filename="a"`},
		{"", "a", `attachment; filename="a"`},
		{"text/plain", `a"b\c`, `inline; filename*=UTF-8''a%22b%5Cc`},
		{"text/plain", "50%.txt", `inline; filename*=UTF-8''50%25.txt`},
		{"text/plain", "a b+c", `inline; filename="a b+c"`},
		{"text/plain", "季度报告 2026.pdf", `inline; filename*=UTF-8''%E5%AD%A3%E5%BA%A6%E6%8A%A5%E5%91%8A%202026.pdf`},
	} {
		if got := disposition(tc.contentType, tc.name); got != tc.want {
			t.Errorf("%q %q: %s", tc.contentType, tc.name, got)
		}
	}
	if got := cleanFilename("a\r\nb\x00\u202ec" + strings.Repeat("长", 300) + ".txt"); strings.ContainsAny(got, "\r\n\x00\u202e") || !strings.HasSuffix(got, "长.txt") || len([]rune(got)) != 255 {
		t.Errorf("cleaned: %q", got)
	}
}

func TestUploadType(t *testing.T) {
	for in, want := range map[string]string{
		"": octetStream, "image/png": "image/png", "Image/PNG": "image/png", "nonsense": octetStream, "text/plain;charset=GBK": "text/plain; charset=GBK",
		"a/b\r\nX: y": octetStream, "text/plain; =": octetStream, strings.Repeat("a", 300) + "/b": octetStream,
	} {
		if got := uploadType(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
