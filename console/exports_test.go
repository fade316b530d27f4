package console_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

var fileLink = regexp.MustCompile(`href="(/console/search/export/file\?id=[^"]+)"`)

// download follows the link of an export's page.
func (b *browser) download() *browser {
	b.t.Helper()
	m := fileLink.FindStringSubmatch(b.page)
	if m == nil {
		b.t.Fatalf("%d, no link to a file:\n%s", b.code, b.text())
	}
	return b.get(html.UnescapeString(m[1]))
}

// exported is an export as the API tells of it.
type exported struct {
	ID      string `json:"export_id"`
	State   string
	Format  string
	Query   map[string]any
	About   int
	Entries int
	Bytes   int
	SHA256  string
}

func exportState(t *testing.T, hs *hstest.Server, c *hstest.Client, id string) (out exported) {
	t.Helper()
	status, body := call(t, hs, c, "GET", "/_moothall/compliance/v1/exports/"+id, "Case 5/2026", "")
	if err := json.Unmarshal(body, &out); err != nil || status != 200 {
		t.Fatalf("%d %v %s", status, err, body)
	}
	return out
}

const exportBase = "/_moothall/compliance/v1/exports"

// smallBuffers reads by buffers that do not grow to the size of a whole export, as the system lets them.
func smallBuffers() *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err == nil {
			err = conn.(*net.TCPConn).SetReadBuffer(64 << 10)
		}
		return conn, err
	}}
}

// open begins a download and leaves it half read.
func open(t *testing.T, hs *hstest.Server, c *hstest.Client, id string) *http.Response {
	t.Helper()
	r, err := http.NewRequest("GET", hs.URL+exportBase+"/"+id+"/file", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+c.Token)
	r.Header.Set("X-Moothall-Reason", "Case 5/2026")
	client := &http.Client{Transport: smallBuffers()}
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = resp.Body.Close()
		client.CloseIdleConnections()
	})
	return resp
}

// large makes a server's archive too large for the buffers between it and a client that does not read.
func large(t *testing.T, alice *hstest.Client, messages int) {
	t.Helper()
	room := alice.CreateRoom("private_chat")
	var wg sync.WaitGroup
	const senders = 10
	for i := range senders {
		wg.Go(func() {
			noise := make([]byte, 42_000)
			r := rand.NewChaCha8([32]byte{byte(i)})
			for range messages / senders {
				_, _ = r.Read(noise)
				alice.Event(room, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":"pallas","noise":%q}`, base64.StdEncoding.EncodeToString(noise)))
			}
		})
	}
	wg.Wait()
}

// TestExportPage is an export with its page: asked for, downloaded with progress, cancelled, and seen by nobody else.
func TestExportPage(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, olga, otto := hs.User("alice"), role(t, hs, "olga", "compliance"), role(t, hs, "otto", "compliance")
		const messages = 260
		large(t, alice, messages)
		b, other := newBrowser(t, hs, olga), newBrowser(t, hs, otto)
		for _, x := range []*browser{b, other} {
			x.get("/console/search").submit("/console/search/reason", "reason", "Case 5/2026")
		}
		b.get("/console/search/export").wants(200, "have not asked")
		b.until(fmt.Sprintf("%d hits", messages), "pallas")
		testkit.Eventually(t, "the newest are not archived", func() bool { return strings.Count(b.find("pallas").page, "<mark>") >= 25 })
		b.submit("/console/search/export", "words", "pallas", "format", "exe").wants(400, "csv or jsonl")
		b.find("pallas").submit("/console/search/export", "words", "pallas", "format", "jsonl").wants(200, "Ready to be downloaded", fmt.Sprintf("about %d", messages), "Case 5/2026", "pallas")
		if !strings.Contains(b.page, `<meta http-equiv="refresh"`) {
			t.Error("the page of an export that waits does not load itself again")
		}
		page := fileLink.FindStringSubmatch(b.page)
		address := html.UnescapeString(page[1])
		at := strings.Replace(address, "/file?", "?", 1)
		_, id, _ := strings.Cut(address, "id=")
		b.save("export-waiting", at)
		other.get(at).wants(404, "no such export")
		other.get(address).wants(404, "no such export")
		if status, body := call(t, hs, otto, "DELETE", exportBase+"/"+id, "Case 6/2026", ""); status != 404 {
			t.Errorf("somebody else cancels it: %d %s", status, body)
		}

		// While a client hangs in the middle its page says how far it is, and a second download is refused.
		resp := open(t, hs, olga, id)
		if resp.StatusCode != 200 || resp.Header.Get("X-Moothall-Export") != id {
			t.Fatalf("download: %d", resp.StatusCode)
		}
		testkit.Eventually(t, "no progress is noted", func() bool {
			s := exportState(t, hs, olga, id)
			return s.State == "running" && s.Entries > 0 && s.Bytes > 0
		})
		b.get(at).wants(200, "of about "+fmt.Sprint(messages)+" entries are sent", "Time taken")
		if !strings.Contains(b.page, "<progress ") || !strings.Contains(b.page, `<meta http-equiv="refresh"`) || strings.Contains(b.page, "/export/file") {
			t.Errorf("a page without progress: %s", b.page)
		}
		b.save("export-running", at)
		b.get(at + "&still=1")
		if strings.Contains(b.page, `http-equiv="refresh"`) {
			t.Error("it cannot be stopped to load itself again")
		}
		if status, body := call(t, hs, olga, "GET", exportBase+"/"+id+"/file", "Case 5/2026", ""); status != 409 {
			t.Errorf("a second download at once: %d %.200s", status, body)
		}
		if status, _ := call(t, hs, olga, "HEAD", exportBase+"/"+id+"/file", "Case 5/2026", ""); status != 405 {
			t.Errorf("HEAD: %d", status)
		}
		b.get(at).submit("/console/search/export/cancel", "id", id).wants(200, "Cancelled after")
		if _, err := io.ReadAll(resp.Body); err == nil {
			t.Error("an export that was cancelled looks whole")
		}
		testkit.Eventually(t, "the end is not on record", func() bool { return len(entries(t, hs, "archive.export.ended")) == 1 })
		if e := entries(t, hs, "archive.export.ended")[0]; e.Details["cancelled"] != true || e.Reason != "Case 5/2026" {
			t.Errorf("on record: %+v", e)
		}

		// Whoever goes away in the middle may begin again, and gets it whole.
		resp = open(t, hs, olga, id)
		_, _ = io.CopyN(io.Discard, resp.Body, 1000)
		_ = resp.Body.Close()
		testkit.Eventually(t, "it does not count as interrupted", func() bool { return exportState(t, hs, olga, id).State == "interrupted" })
		b.get(at).wants(200, "Interrupted after", "Download again")
		rows := unpack(t, b.download().body, "jsonl")
		s := exportState(t, hs, olga, id)
		if len(rows) != messages || s.State != "done" || s.Entries != messages || s.Bytes != len(b.body) || len(s.SHA256) != 64 || s.Query["words"] != "pallas" {
			t.Errorf("%d rows, %+v", len(rows), s)
		}
		b.get(at).wants(200, fmt.Sprintf("Complete: %d entries", messages), s.SHA256)
		if strings.Contains(b.page, `http-equiv="refresh"`) {
			t.Error("the page of an export that has ended loads itself again")
		}
		b.save("export-done", at)
		b.get("/console/search/export").wants(200, "complete", "Case 5/2026", "pallas", fmt.Sprint(messages))
		b.save("exports", "/console/search/export")
		other.get("/console/search/export").wants(200, "have not asked")
		if n := len(entries(t, hs, "archive.export.download")); n != 3 {
			t.Errorf("%d downloads are on record", n)
		}
		ended := entries(t, hs, "archive.export.ended")
		if len(ended) != 3 || ended[0].Details["sha256"] != s.SHA256 {
			t.Errorf("on record: %+v", ended)
		}
	}, archived)
}

// TestExportTwoNodes has two servers on one database: one sends an export, the other tells how far it is and cancels it.
func TestExportTwoNodes(t *testing.T) {
	db := hstest.Postgres(storetest.Postgres(t))
	nodes := []*hstest.Server{hstest.Start(t, db, archived), hstest.Start(t, db, archived)}
	alice, olga := nodes[0].User("alice"), role(t, nodes[0], "olga", "compliance")
	const messages = 260
	large(t, alice, messages)
	ask := func(hs *hstest.Server) (int, []byte) {
		return call(t, hs, olga, "POST", exportBase+"?format=jsonl", "Case 5/2026", `{"words":"pallas"}`)
	}
	var e exported
	at := 0 // the one that keeps the index
	testkit.Eventually(t, "no server finds everything", func() bool {
		at = 1 - at
		status, body := ask(nodes[at])
		return status == 200 && json.Unmarshal(body, &e) == nil && e.About == messages
	})
	if e.State != "waiting" || e.Format != "jsonl" || e.ID == "" {
		t.Fatalf("%+v", e)
	}
	one, other := nodes[at], nodes[1-at]
	testkit.Eventually(t, "not everything is archived", func() bool {
		status, body := call(t, one, olga, "POST", "/_moothall/compliance/v1/search", "Case 5/2026", `{"words":"pallas","limit":500}`)
		return status == 200 && bytes.Count(body, []byte(`"event_id"`)) >= messages
	})
	resp := open(t, one, olga, e.ID)
	if resp.StatusCode != 200 {
		t.Fatalf("download: %d", resp.StatusCode)
	}
	testkit.Eventually(t, "no progress is seen elsewhere", func() bool { s := exportState(t, other, olga, e.ID); return s.State == "running" && s.Entries > 0 })
	status, body := call(t, other, olga, "DELETE", exportBase+"/"+e.ID, "Case 5/2026", "")
	if status != 200 || !bytes.Contains(body, []byte(`"cancelled"`)) {
		t.Fatalf("cancel: %d %s", status, body)
	}
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("an export that was cancelled looks whole")
	}
	testkit.Eventually(t, "the end is not on record", func() bool { return len(entries(t, other, "archive.export.ended")) == 1 })
	status, body = call(t, one, olga, "GET", exportBase+"/"+e.ID+"/file", "Case 5/2026", "")
	if status != 200 || len(unpack(t, body, "jsonl")) != messages {
		t.Errorf("once more: %d", status)
	}
	if s := exportState(t, other, olga, e.ID); s.State != "done" || s.Entries != messages {
		t.Errorf("%+v", s)
	}
	status, body = call(t, other, olga, "GET", exportBase, "Case 5/2026", "")
	if status != 200 || !bytes.Contains(body, []byte(e.ID)) {
		t.Errorf("list: %d %s", status, body)
	}
}

// TestNothingYet is an officer on a server where nobody has said anything: an empty page, not a failure.
func TestNothingYet(t *testing.T) {
	each(t, func(t *testing.T, hs *hstest.Server) {
		olga := role(t, hs, "olga", "compliance")
		b := newBrowser(t, hs, olga)
		b.get("/console/search").submit("/console/search/reason", "reason", "Case 5/2026")
		testkit.Eventually(t, "no engine", func() bool { return !strings.Contains(b.find("x1").text(), "being prepared") })
		b.find("anything").wants(200, "0 hits")
		if status, body := call(t, hs, olga, "POST", "/_moothall/compliance/v1/search", "Case 5/2026", `{"words":"anything"}`); status != 200 || !bytes.Contains(body, []byte(`"total":0`)) {
			t.Errorf("%d %s", status, body)
		}
		status, body := call(t, hs, olga, "POST", "/_moothall/compliance/v1/export", "Case 5/2026", `{"words":"anything"}`)
		if status != 200 || !bytes.HasPrefix(body, []byte("PK")) {
			t.Errorf("export: %d %.200s", status, body)
		}
		if r := olga.Do(t, "POST", `{"search_categories":{"room_events":{"search_term":"anything"}}}`, "/v3/search"); r.Status != 200 {
			t.Errorf("a user's search: %d %s", r.Status, r.Body)
		}
		if status, _ := call(t, hs, olga, "GET", exportBase+"/none", "Case 5/2026", ""); status != 404 {
			t.Errorf("no such export: %d", status)
		}
	}, archived)
}
