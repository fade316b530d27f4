package console_test

import (
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	cdpbrowser "github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/testkit"
	"github.com/moothall/moothall/tests/chromium"
)

// gated reads on only when it is let.
type gated struct {
	io.ReadCloser
	gate <-chan struct{}
}

func (g gated) Read(b []byte) (int, error) {
	n, err := g.ReadCloser.Read(b)
	<-g.gate
	return n, err
}

// TestExportInChromium has a browser download an export: its page follows by itself from the question to the hash of the file.
func TestExportInChromium(t *testing.T) {
	hs := hstest.Start(t, archived)
	ctx := chromium.Start(t, "en", 900, 1000)
	alice, olga := hs.User("alice"), role(t, hs, "olga", "compliance")
	const messages = 200
	large(t, alice, messages)
	b := newBrowser(t, hs, olga)
	b.get("/console/search").submit("/console/search/reason", "reason", "Case 5/2026")
	b.until(fmt.Sprintf("%d hits", messages), "pallas")
	testkit.Eventually(t, "the newest are not archived", func() bool { return strings.Count(b.find("pallas").page, "<mark>") >= 25 })
	b.submit("/console/search/export", "words", "pallas", "format", "jsonl").wants(200, "Ready to be downloaded")
	at := strings.Replace(html.UnescapeString(fileLink.FindStringSubmatch(b.page)[1]), "/file?", "?", 1)

	// a way to the server on which files stop until they are let on
	target, err := url.Parse(hs.URL)
	if err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	slow := httptest.NewServer(&httputil.ReverseProxy{
		Transport: smallBuffers(),
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ModifyResponse: func(r *http.Response) error {
			if strings.HasSuffix(r.Request.URL.Path, "/file") {
				r.Body = gated{r.Body, gate}
			}
			return nil
		},
	})
	t.Cleanup(slow.Close)

	dir := t.TempDir()
	if _, err := chromedp.Call(ctx, cdpbrowser.SetDownloadBehavior, cdpbrowser.SetDownloadBehaviorParams{Behavior: "allow", DownloadPath: dir}); err != nil {
		t.Fatal(err)
	}
	for _, c := range b.http.Jar.Cookies(target) {
		if _, err := chromedp.Call(ctx, network.SetCookie, network.SetCookieParams{Name: c.Name, Value: c.Value, URL: slow.URL}); err != nil {
			t.Fatal(err)
		}
	}
	const link, running, done = `a[href^="/console/search/export/file"]`, "progress", "p.done"
	chromium.Do(ctx, t, "the page of the export", chromedp.Navigate(slow.URL+at), chromedp.WaitVisible(chromedp.CSS(link)))
	chromium.Picture(ctx, t, "export-waiting")
	chromium.Do(ctx, t, "the download", chromedp.Click(chromedp.CSS(link)), chromedp.WaitVisible(chromedp.CSS(running)))
	if text := chromium.Text(ctx, t, "#sent"); !strings.Contains(text, fmt.Sprintf("of about %d entries", messages)) {
		t.Errorf("while it is sent the page shows %q", text)
	}
	chromium.Picture(ctx, t, "export-running")
	close(gate)
	chromium.Do(ctx, t, "the end", chromedp.WaitVisible(chromedp.CSS(done)))
	chromium.Picture(ctx, t, "export-done")
	if text := chromium.Text(ctx, t, "main"); !strings.Contains(text, fmt.Sprintf("Complete: %d entries", messages)) {
		t.Errorf("in the end the page shows %q", text)
	}
	var saved []string
	testkit.Eventually(t, "no file was saved", func() bool {
		saved, _ = filepath.Glob(filepath.Join(dir, "*.zip"))
		return len(saved) == 1
	})
	file, err := os.ReadFile(saved[0])
	if err != nil {
		t.Fatal(err)
	}
	if rows := unpack(t, file, "jsonl"); len(rows) != messages {
		t.Errorf("the file has %d rows", len(rows))
	}
}
