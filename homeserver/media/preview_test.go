package media

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidwall/gjson"
	"golang.org/x/text/encoding/simplifiedchinese"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// site is a web site to preview.
func newSite(t *testing.T, hits *atomic.Int64) *httptest.Server {
	mux := http.NewServeMux()
	page := func(path, contentType, body string) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			hits.Add(1)
			w.Header().Set("Content-Type", contentType)
			_, _ = io.WriteString(w, body)
		})
	}
	gbk, err := simplifiedchinese.GBK.NewEncoder().String(`<html><head><title>季度报告</title></head>`)
	if err != nil {
		t.Fatal(err)
	}
	page("/og", "text/html; charset=utf-8", `<html><head><title>plain</title><meta property="og:title" content=" Tom &amp;&#10;Jerry "/><meta property="og:image" content="/pic.png">
		<meta property=og:image:width content=99999><meta property="og:site_name" content="Site"><meta name="description" content="words"></head><body>x`)
	page("/plain", "text/html", `<title>Only a title</title><body><title>second</title>`)
	page("/gbk", "text/html; charset=gbk", gbk)
	page("/pic.png", "image/png", string(encodePNG(t, quadrants(30, 20))))
	page("/fake.png", "image/png", "<script>alert(1)</script>")
	page("/fakepic", "text/html", `<title>t</title><meta property="og:image" content="/fake.png">`)
	page("/file", "text/html", `<title>t</title><meta property="og:image" content="file:///etc/passwd">`)
	page("/zip", "application/zip", "PK")
	page("/video", "text/html", `<title>Player</title><link rel="alternate" type="application/json+oembed" href="/embed?x=1&amp;y">`)
	page("/embed", "application/json", `{"type":"video","title":"A film","author_name":"Ann","provider_name":"Tube","html":"<script>","thumbnail_url":"`+"/pic.png"+`"}`)
	page("/badembed", "text/html", `<title>t</title><link rel=alternate type=application/json+oembed href="/plain">`)
	page("/huge", "text/html", "<title>huge</title>"+strings.Repeat("x", 4<<20)+`<meta property="og:title" content="late">`)
	mux.HandleFunc("GET /moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/plain", http.StatusFound) })
	mux.HandleFunc("GET /loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	mux.HandleFunc("GET /slow", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-time.After(testkit.Patience):
		}
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv
}

func TestPreview(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		w := newWorld(t, cfg, Config{Previews: true, PreviewTime: time.Second})
		var hits atomic.Int64
		site := newSite(t, &hits)
		get := func(path string) gjson.Result {
			t.Helper()
			return gjson.ParseBytes(w.want(200, "", alice, "GET", v1+"preview_url?url="+site.URL+path, "").body)
		}
		p := get("/og#part")
		for path, want := range map[string]string{"og:title": `"Tom & Jerry"`, "og:site_name": `"Site"`, "og:description": `"words"`, "og:image:type": `"image/png"`,
			"og:image:width": "30", "og:image:height": "20"} {
			if got := p.Get(path).Raw; got != want {
				t.Errorf("%s: %s, want %s", path, got, want)
			}
		}
		uri, ok := strings.CutPrefix(p.Get("og:image").Str, "mxc://")
		if !ok {
			t.Fatalf("image: %s", p.Raw)
		}
		if a := w.want(200, "", bob, "GET", v1+"download/"+uri, ""); int64(len(a.body)) != p.Get("matrix:image:size").Int() {
			t.Errorf("%d bytes of %d", len(a.body), p.Get("matrix:image:size").Int())
		}
		before := hits.Load()
		if again := get("/og"); again.Raw != p.Raw || hits.Load() != before {
			t.Error("the preview is not kept")
		}
		for path, title := range map[string]string{"/plain": "Only a title", "/gbk": "季度报告", "/moved": "Only a title", "/huge": "huge", "/fakepic": "t", "/file": "t", "/badembed": "t"} {
			p := get(path)
			if p.Get("og:title").Str != title || p.Get("og:image").Exists() {
				t.Errorf("%s: %s", path, p.Raw)
			}
		}
		if p := get("/video"); p.Get("og:title").Str != "Player" || p.Get("og:site_name").Str != "Tube" || p.Get("og:description").Str != "Ann" ||
			!strings.HasPrefix(p.Get("og:image").Str, "mxc://") {
			t.Errorf("a page with a description: %s", p.Raw)
		}
		if p := get("/pic.png"); !strings.HasPrefix(p.Get("og:image").Str, "mxc://") {
			t.Errorf("an image: %s", p.Raw)
		}
		for _, path := range []string{"/zip", "/missing", "/loop", "/slow", "/fake.png"} {
			w.want(502, "M_UNKNOWN", alice, "GET", v1+"preview_url?url="+site.URL+path, "")
			w.want(502, "M_UNKNOWN", alice, "GET", "/_matrix/media/v3/preview_url?url="+site.URL+path, "")
		}
		for query, errcode := range map[string]string{"": "M_MISSING_PARAM", "url=ftp://x/": "M_INVALID_PARAM", "url=https://u:p@x/": "M_INVALID_PARAM",
			"url=%25": "M_INVALID_PARAM", "url=//x": "M_INVALID_PARAM", "url=http://x&ts=a": "M_INVALID_PARAM", "url=http://" + strings.Repeat("x", 3000): "M_INVALID_PARAM"} {
			w.want(400, errcode, alice, "GET", v1+"preview_url?"+query, "")
		}
		w.want(401, "M_MISSING_TOKEN", nobody, "GET", v1+"preview_url?url="+site.URL, "")
		if err := w.Clean(context.Background(), time.Now().Add(40*24*time.Hour)); err != nil {
			t.Fatal(err)
		}
		if blobs, _ := w.files(); blobs != 0 {
			t.Errorf("%d blobs are left of old previews", blobs)
		}
	})
}

// TestPreviewByClient: what the client refuses is no preview, and nothing more is said.
func TestPreviewByClient(t *testing.T) {
	w := newWorld(t, store.Config{DataDir: t.TempDir()}, Config{Previews: true})
	w.Client = &http.Client{Transport: refuse{}}
	a := w.want(502, "M_UNKNOWN", alice, "GET", v1+"preview_url?url=http://10.0.0.1/", "")
	if strings.Contains(string(a.body), "private") {
		t.Errorf("%s", a.body)
	}
}

type refuse struct{}

func (refuse) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("a private address")
}

func FuzzOpenGraph(f *testing.F) {
	f.Add([]byte(`<title>a</title><meta property="og:image" content="x"><meta name=description content=y>`))
	f.Fuzz(func(t *testing.T, page []byte) {
		properties, _, _ := openGraph(strings.NewReader(string(page)))
		for k, v := range properties {
			if len([]rune(v)) > maxPropertyText || v == "" || len(k) > 64 {
				t.Fatalf("%q: %q", k, v)
			}
		}
	})
}
