package console_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/testkit"
)

func archived(c *homeserver.Config) {
	c.PublicURL = "http://127.0.0.1:0"
	c.Compliance.Archive, c.Compliance.Notice, c.Compliance.SecondFactor = true, false, false
}

func role(t *testing.T, hs *hstest.Server, name, role string) *hstest.Client {
	t.Helper()
	c := hs.User(name)
	if role != "" {
		if _, _, err := homeserver.SetRole(t.Context(), hs.Config, slog.New(slog.DiscardHandler), name, role, true); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// browser is a person with a browser: it keeps cookies and fills in forms.
type browser struct {
	t    *testing.T
	http *http.Client
	base string
	lang string
	page string
	code int
	body []byte
	head http.Header
}

func newBrowser(t *testing.T, hs *hstest.Server, c *hstest.Client) *browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t, http: &http.Client{Jar: jar}, base: hs.URL, lang: "en"}
	b.get("/signin?choose=1").submit("/signin/password", "username", c.UserID.Localpart(), "password", c.Password)
	if b.code != 200 {
		t.Fatalf("sign in: %d", b.code)
	}
	return b
}

func (b *browser) do(r *http.Request) *browser {
	b.t.Helper()
	r.Header.Set("Accept-Language", b.lang)
	resp, err := b.http.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	if b.body, err = io.ReadAll(resp.Body); err != nil {
		b.t.Fatal(err)
	}
	b.page, b.code, b.head = string(b.body), resp.StatusCode, resp.Header
	return b
}

func (b *browser) get(path string) *browser {
	b.t.Helper()
	r, err := http.NewRequest("GET", b.base+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.do(r)
}

var (
	csrfField = regexp.MustCompile(`name="csrf" value="([^"]*)"`)
	markup    = regexp.MustCompile(`(?s)<style>.*?</style>|<[^>]*>`)
)

// submit posts a form that the page has.
func (b *browser) submit(action string, values ...string) *browser {
	b.t.Helper()
	m := csrfField.FindStringSubmatch(b.page)
	if m == nil || !strings.Contains(b.page, `action="`+action) {
		b.t.Fatalf("the page has no form for %s:\n%s", action, b.text())
	}
	form := url.Values{"csrf": {html.UnescapeString(m[1])}}
	for i := 0; i < len(values); i += 2 {
		form.Set(values[i], values[i+1])
	}
	r, err := http.NewRequest("POST", b.base+action, strings.NewReader(form.Encode()))
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return b.do(r)
}

func (b *browser) text() string { return html.UnescapeString(markup.ReplaceAllString(b.page, "")) }

// wants fails the test unless the page has a status and shows texts.
func (b *browser) wants(code int, texts ...string) *browser {
	b.t.Helper()
	for _, text := range texts {
		if b.code != code || !strings.Contains(b.text(), text) {
			b.t.Fatalf("%d, want %d with %q:\n%s", b.code, code, text, b.text())
		}
	}
	return b
}

// save keeps a page for pictures, in both languages.
func (b *browser) save(name, path string) {
	dir := os.Getenv("MOOTHALL_TEST_SCREENSHOTS")
	if dir == "" {
		return
	}
	for _, lang := range []string{"en", "zh"} {
		b.lang = lang
		b.get(path)
		if err := os.WriteFile(filepath.Join(dir, "console-"+name+"-"+lang+".html"), b.body, 0o600); err != nil {
			b.t.Error(err)
		}
	}
	b.lang = "en"
}

func (b *browser) find(words string, more ...string) *browser {
	b.t.Helper()
	v := url.Values{"words": {words}}
	for i := 0; i < len(more); i += 2 {
		v.Set(more[i], more[i+1])
	}
	return b.get("/console/search?" + v.Encode())
}

// until asks again until the page shows a text: the archive and the index follow within a moment.
func (b *browser) until(text, words string, more ...string) *browser {
	b.t.Helper()
	for end := time.Now().Add(testkit.Patience); ; time.Sleep(200 * time.Millisecond) {
		if b.find(words, more...); strings.Contains(b.text(), text) {
			return b
		}
		if time.Now().After(end) {
			b.t.Fatalf("not found: %q\n%s", text, b.text())
		}
	}
}

func entries(t *testing.T, hs *hstest.Server, action string) []audit.Stored {
	t.Helper()
	var out []audit.Stored
	err := homeserver.WithAudit(t.Context(), hs.Config, slog.New(slog.DiscardHandler), "test", func(ctx context.Context, l *audit.Log) error {
		p, err := l.Query(ctx, audit.Filter{Actions: []string{action}, Limit: 1000})
		out = p.Entries
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// each runs a test on every database with the engine inside of the process, with Elasticsearch and with OpenSearch.
func each(t *testing.T, fn func(t *testing.T, hs *hstest.Server), options ...hstest.Option) {
	t.Helper()
	hstest.Each(t, fn, options...)
	for _, name := range []string{"elasticsearch", "opensearch"} {
		t.Run(name, func(t *testing.T) {
			at := testkit.Partner(t, "MOOTHALL_TEST_"+strings.ToUpper(name))
			prefix := fmt.Sprintf("console-%x", time.Now().UnixNano())
			t.Cleanup(func() { dropIndices(t, at, prefix) })
			fn(t, hstest.Start(t, append([]hstest.Option{func(c *homeserver.Config) {
				c.Search.Elasticsearch.URL, c.Search.Elasticsearch.Prefix = at, prefix
			}}, options...)...))
		})
	}
}

// dropIndices removes what a test left in the cluster, which refuses wildcards.
func dropIndices(t *testing.T, at, prefix string) {
	resp, err := http.Get(at + "/_cat/indices/" + prefix + "*?h=index&expand_wildcards=all")
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	list, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	for _, name := range strings.Fields(string(list)) {
		r, err := http.NewRequest("DELETE", at+"/"+name, nil)
		if err != nil {
			t.Fatal(err)
		}
		if gone, err := http.DefaultClient.Do(r); err == nil {
			_ = gone.Body.Close()
		}
	}
}

// TestConsole is an officer's day: reason, search, a message with its versions, an export; and an auditor reads of it.
func TestConsole(t *testing.T) {
	each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob := hs.User("alice"), hs.User("bob")
		olga, adam := role(t, hs, "olga", "compliance"), role(t, hs, "adam", "auditor")
		room := alice.CreateRoomWith(`{"preset":"public_chat","name":"项目 Neptune"}`)
		bob.Join(room)
		alice.Text(room, "合同 4711 的报价 is =1+1")
		said := bob.Text(room, "please delete the quotation 4711 <script>")
		edit := bob.Event(room, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":"* nothing","m.new_content":{"msgtype":"m.text","body":"nothing was quoted"},"m.relates_to":{"rel_type":"m.replace","event_id":%q}}`, said))
		gone := alice.Text(room, "=SUM(4711) secretly")
		alice.Must(t, "PUT", `{}`, "/v3/rooms/%s/redact/%s/%s", room, gone, alice.Txn())

		b := newBrowser(t, hs, olga)
		b.get("/console/search").wants(200, "state why")
		b.find("4711").wants(200, "state why") // nothing is shown without a reason
		b.submit("/console/search/reason", "reason", "x").wants(400, "5 to 160")
		b.submit("/console/search/reason", "reason", "Case 2026/17").wants(200, "Case 2026/17")
		b.until("secretly", "4711").until("3 hits", "4711")
		b.wants(200, "please delete the quotation 4711 <script>", "项目 Neptune", "deleted", "edited", string(bob.UserID))
		if !strings.Contains(b.page, "<mark>4711</mark>") || !strings.Contains(b.page, "<rect") || strings.Contains(b.page, "<script>") {
			t.Errorf("marks, histogram or escaping: %s", b.page)
		}
		b.find("合同").wants(200, "1 hits")
		b.find("4711", "sender", string(bob.UserID)).wants(200, "1 hits")
		b.find("", "state", "deleted").wants(200, "secretly")
		b.find("", "state", "edited").wants(200, "nothing was quoted")
		b.find("", "room", string(room), "from", time.Now().UTC().Format(time.DateOnly)).wants(200, "项目 Neptune")
		b.find("4711", "from", "2001-02-03", "to", "2001-02-04").wants(200, "0 hits")
		b.find("", "room", "!none:test").wants(400, "has no room")
		b.find("", "from", "yesterday").wants(400, "2026-01-31")
		b.find("", "kind", "x' OR 1").wants(400, "no such kind")
		b.find(strings.Repeat("a", 2000)).wants(400, "the most is")
		b.get("/console/search/event?id="+url.QueryEscape(string(edit))).wants(200, "please delete the quotation", "nothing was quoted", string(alice.UserID), "secretly")
		b.get("/console/search/event?id=x").wants(404, "")
		b.get("/console/search/reason").wants(200, "Case 2026/17") // as after signing in again
		b.save("search", "/console/search?words=4711")
		b.save("event", "/console/search/event?id="+url.QueryEscape(string(edit)))
		b.save("reason", "/console/search?reason=new")

		for _, format := range []string{"csv", "jsonl"} {
			b.find("4711").submit("/console/search/export", "words", "4711", "format", format)
			rows := unpack(t, b.download().body, format)
			if len(rows) != 3 {
				t.Errorf("%s: %d rows", format, len(rows))
			}
			if format == "csv" && !strings.Contains(strings.Join(rows, "\n"), "'=SUM(4711)") {
				t.Errorf("a formula is exported: %v", rows)
			}
		}
		if n := len(entries(t, hs, "archive.export.ended")); n != 2 {
			t.Errorf("%d ends of exports", n)
		}
		for _, e := range entries(t, hs, "archive") {
			if e.Kind == audit.KindOfficer && (e.Actor != olga.UserID || e.Reason == "" || e.IP == "") {
				t.Errorf("an entry without reason: %+v", e)
			}
		}

		// A room that is deleted is gone from the index and stays in the archive.
		boss := role(t, hs, "boss", "admin")
		boss.Must(t, "DELETE", `{"purge":true}`, "/_synapse/admin/v2/rooms/%s", room)
		testkit.Eventually(t, "the room is gone", func() bool {
			return strings.Contains(string(boss.Do(t, "GET", "", "/_synapse/admin/v2/rooms/%s/delete_status", room).Body), `"complete"`)
		})
		b.find("4711", "room", string(room)).wants(200, "3 hits", "secretly", string(room))
		b.find("", "room", string(room), "state", "deleted").wants(200, "1 hits", "secretly")
		b.find("", "room", string(room), "state", "edited").wants(200, "nothing was quoted")
		b.find("4711", "room", string(room), "sender", string(bob.UserID), "kind", "text").wants(200, "1 hits", "please delete")
		b.find("4711", "room", string(room), "to", "2001-02-03").wants(200, "0 hits")
		b.get("/console/search/event?id="+url.QueryEscape(string(edit))).wants(200, "deleted room", "please delete the quotation")

		// Nobody else sees anything, and who tries is on record.
		nobody := newBrowser(t, hs, bob)
		nobody.get("/console/search?words=4711").wants(403, "does not have the role")
		nobody.get("/console/audit").wants(403, "does not have the role")
		newBrowser(t, hs, adam).get("/console/search").wants(403, "does not have the role")
		if n := len(entries(t, hs, "console.refused")); n != 3 {
			t.Errorf("%d refusals are on record", n)
		}

		a := newBrowser(t, hs, adam)
		a.get("/console/audit?action=archive").wants(200, "archive.search", "Case 2026/17", string(olga.UserID))
		a.get("/console/audit?result=x").wants(400, "ok, refused or failed")
		a.save("audit", "/console/audit?action=archive")
		a.get("/console/audit").submit("/console/audit/export", "action", "archive.search")
		lines := strings.Split(strings.TrimSpace(string(a.body)), "\n")
		if len(lines) < 5 || !strings.Contains(lines[len(lines)-1], fmt.Sprintf(`"entries":%d`, len(lines)-1)) {
			t.Errorf("export of the audit log: %d lines, the last %s", len(lines), lines[len(lines)-1])
		}
	}, archived)
}

// unpack reads an export and checks its sum.
func unpack(t *testing.T, body []byte, format string) []string {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(body), int64(len(body)))
	if err != nil || len(z.File) != 2 {
		t.Fatalf("no export: %v: %.300s", err, body)
	}
	content := func(f *zip.File) []byte {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	data := content(z.File[0])
	var m struct {
		SHA256, Reason, Officer string
		Entries                 int
	}
	if err := json.Unmarshal(content(z.File[1]), &m); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	if hex.EncodeToString(sum[:]) != m.SHA256 || m.Reason == "" || m.Officer == "" {
		t.Errorf("manifest: %+v", m)
	}
	var rows []string
	if format == "csv" {
		all, err := csv.NewReader(bytes.NewReader(data)).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all[1:] {
			rows = append(rows, strings.Join(r, "|"))
		}
	} else {
		rows = strings.Split(strings.TrimSpace(string(data)), "\n")
	}
	if len(rows) != m.Entries {
		t.Errorf("%d rows, the manifest says %d", len(rows), m.Entries)
	}
	return rows
}

// call asks the HTTP API.
func call(t *testing.T, hs *hstest.Server, c *hstest.Client, method, path, reason, body string) (int, []byte) {
	t.Helper()
	r, err := http.NewRequest(method, hs.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+c.Token)
	r.Header.Set("X-Moothall-Reason", reason)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, b
}

// TestAPI pages through many hits by the HTTP API and exports them, and looks at the memory that this takes.
func TestAPI(t *testing.T) {
	hs := hstest.Start(t, archived)
	alice, olga := hs.User("alice"), role(t, hs, "olga", "compliance")
	room := alice.CreateRoom("private_chat")
	const senders = 20
	many := 2000
	if n, err := strconv.Atoi(os.Getenv("MOOTHALL_BENCH_MESSAGES")); err == nil {
		many = n
	}
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			for k := range many / senders {
				alice.Text(room, fmt.Sprintf("number %d of %d: everything there is to say", k, i))
			}
		})
	}
	wg.Wait()
	const base = "/_moothall/compliance/v1"
	for _, tc := range []struct {
		who                        *hstest.Client
		method, path, reason, body string
		status                     int
	}{
		{alice, "POST", "/search", "Case 1 of 2", `{}`, 403},
		{alice, "GET", "/audit", "", ``, 403},
		{olga, "GET", "/audit", "", ``, 403},
		{olga, "POST", "/search", "", `{}`, 400},
		{olga, "POST", "/search", "Case 1 of 2", `{"kind":"x"}`, 400},
		{olga, "POST", "/search", "Case 1 of 2", `{"after":"x"}`, 400},
		{olga, "POST", "/search", "Case 1 of 2", `{`, 400},
		{olga, "POST", "/export?format=exe", "Case 1 of 2", `{}`, 400},
		{olga, "GET", "/events/$none", "Case 1 of 2", ``, 404},
	} {
		if status, body := call(t, hs, tc.who, tc.method, base+tc.path, tc.reason, tc.body); status != tc.status {
			t.Errorf("%s %s: %d, want %d: %s", tc.path, tc.body, status, tc.status, body)
		}
	}
	seen := map[string]bool{}
	var after string
	for end := time.Now().Add(3 * time.Minute); ; {
		status, body := call(t, hs, olga, "POST", base+"/search", "Case 1 of 2", fmt.Sprintf(`{"words":"everything","limit":300,"after":%q}`, after))
		var page struct {
			Total int64
			Hits  []struct {
				EventID string `json:"event_id"`
			}
			Next string
		}
		if err := json.Unmarshal(body, &page); err != nil || status != 200 {
			t.Fatal(status, err, string(body))
		}
		if after == "" && (page.Total < int64(many) || len(page.Hits) < 300) && time.Now().Before(end) {
			time.Sleep(200 * time.Millisecond) // indexed and archived within a moment
			continue
		}
		for _, h := range page.Hits {
			seen[h.EventID] = true
		}
		if after = page.Next; after == "" {
			break
		}
	}
	if len(seen) != many {
		t.Errorf("%d hits on all pages, want %d", len(seen), many)
	}
	runtime.GC()
	before := resident()
	peak := before
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				peak = max(peak, resident())
			}
		}
	})
	began := time.Now()
	status, body := call(t, hs, olga, "POST", base+"/export?format=jsonl", "Case 1 of 2", `{"words":"everything"}`)
	took := time.Since(began)
	close(stop)
	watch.Wait()
	if status != 200 {
		t.Fatalf("export: %d %s", status, body)
	}
	if rows := unpack(t, body, "jsonl"); len(rows) != many {
		t.Errorf("%d rows", len(rows))
	}
	grown := peak - before
	t.Logf("%d messages in %v, %d KiB more at the peak, %d bytes", many, took, grown>>10, len(body))
	if grown > 100<<20 {
		t.Errorf("the export took %d bytes more", grown)
	}
}

// resident is the memory that this process has from the system: garbage that is collected again and again is no growth.
func resident() int64 {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	return int64(s[0].Value.Uint64() - s[1].Value.Uint64())
}

// TestFileOfArchive redacts a message with a file, and deletes the file by the admin API and then the room: users have lost
// it, the officer gets it, and that is on record.
func TestFileOfArchive(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, olga, boss := hs.User("alice"), role(t, hs, "olga", "compliance"), role(t, hs, "boss", "admin")
		room := alice.CreateRoom("private_chat")
		content := "月度报告: the whole of it"
		req, err := http.NewRequest("POST", hs.URL+"/_matrix/media/v3/upload?filename="+url.QueryEscape("报告 1.txt"), strings.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "text/plain")
		var up struct {
			URI string `json:"content_uri"`
		}
		alice.Send(t, req).JSON(t, &up)
		sent := alice.Event(room, "m.room.message", fmt.Sprintf(`{"msgtype":"m.file","body":"报告 1.txt","url":%q}`, up.URI))
		plain := alice.Text(room, "no file here")
		alice.Must(t, "PUT", `{}`, "/v3/rooms/%s/redact/%s/%s", room, sent, alice.Txn())
		_, mediaID, _ := strings.Cut(strings.TrimPrefix(up.URI, "mxc://"), "/")
		if r := boss.Do(t, "DELETE", "", "/_synapse/admin/v1/media/test/%s", mediaID); r.Status != 200 {
			t.Fatalf("delete the file: %d %s", r.Status, r.Body)
		}
		if r := alice.Do(t, "GET", "", "/v1/media/download/test/%s", mediaID); r.Status != 404 {
			t.Errorf("a user gets a file that was deleted: %d", r.Status)
		}
		const base = "/_moothall/compliance/v1/events/"
		get := func(who *hstest.Client, event id.EventID, reason string) (int, string) {
			status, body := call(t, hs, who, "GET", base+url.PathEscape(string(event))+"/file", reason, "")
			return status, string(body)
		}
		status, body := 0, ""
		for end := time.Now().Add(testkit.Patience); status != 200 && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			status, body = get(olga, sent, "Case 9/2026") // archived within a moment
		}
		if status != 200 || body != content {
			t.Fatalf("the officer gets %d %q", status, body)
		}
		for _, tc := range []struct {
			who    *hstest.Client
			event  id.EventID
			reason string
			status int
		}{{alice, sent, "Case 9/2026", 403}, {olga, sent, "", 400}, {olga, plain, "Case 9/2026", 404}, {olga, "$none", "Case 9/2026", 404}} {
			if status, body := get(tc.who, tc.event, tc.reason); status != tc.status {
				t.Errorf("%s %s %q: %d %s", tc.who.UserID, tc.event, tc.reason, status, body)
			}
		}
		b := newBrowser(t, hs, olga)
		b.get("/console/search").submit("/console/search/reason", "reason", "Case 9/2026")
		b.get("/console/search/event?id="+url.QueryEscape(string(sent))).wants(200, "报告 1.txt")
		if !strings.Contains(b.page, `href="/console/search/file?id=`) {
			t.Errorf("no link to the file: %s", b.page)
		}
		b.save("file", "/console/search/event?id="+url.QueryEscape(string(sent)))
		b.get("/console/search/file?id=" + url.QueryEscape(string(sent)))
		if b.page != content || !strings.HasPrefix(b.head.Get("Content-Disposition"), "attachment;") || b.head.Get("X-Moothall-SHA256") == "" {
			t.Errorf("by the page: %d %q %v", b.code, b.page, b.head)
		}
		if list := entries(t, hs, "archive.file"); len(list) != 2 || list[0].Reason != "Case 9/2026" || list[0].Target != string(sent) {
			t.Errorf("on record: %+v", list)
		}
	}, archived)
}

// TestSecondFactor is an officer without one.
func TestSecondFactor(t *testing.T) {
	hs := hstest.Start(t, archived, func(c *homeserver.Config) { c.Compliance.SecondFactor = true })
	olga := role(t, hs, "olga", "compliance")
	b := newBrowser(t, hs, olga)
	if b.get("/console/search"); strings.Contains(b.text(), "state why") || !strings.Contains(b.text(), "factor") {
		t.Errorf("without a second factor: %d %s", b.code, b.text())
	}
	if status, body := call(t, hs, olga, "POST", "/_moothall/compliance/v1/search", "Case 1 of 2", `{}`); status != 403 {
		t.Errorf("without a second factor: %d %s", status, body)
	}
	refused := entries(t, hs, "console.refused")
	if len(refused) != 2 || refused[0].Actor != olga.UserID || refused[0].Details["lacks"] != "second factor" || refused[1].Details["lacks"] != "second factor" {
		t.Errorf("on record: %+v", refused)
	}
}
