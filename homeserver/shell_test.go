package homeserver_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
	"github.com/moothall/moothall/tests/process"
)

// settings is a small configuration on this database.
func settings(db store.Config) homeserver.Config {
	c := homeserver.DefaultConfig()
	c.ServerName = "shell.test"
	c.DataDir = db.DataDir
	c.Database.URL = homeserver.Secret(db.URL)
	c.Listen = []homeserver.Listen{{Address: "127.0.0.1:0"}}
	c.Passwords.Argon2 = homeserver.Argon2{Memory: 64 << 10, Iterations: 1, Parallelism: 1}
	return c
}

// start runs a server until the test, or the function returned, ends it.
func start(t *testing.T, cfg homeserver.Config) (*homeserver.Server, func()) {
	t.Helper()
	s, err := homeserver.New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return s, stop
}

func get(t *testing.T, client *http.Client, url string, headers ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestPublicRoutes(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db store.Config) {
		cfg := settings(db)
		cfg.Listen[0].Serve = []string{"client", "metrics"}
		cfg.WellKnown.Contacts = []homeserver.Contact{{Role: "m.role.admin", Email: "it@shell.test"}}
		began := time.Now()
		s, _ := start(t, cfg)
		for _, tc := range []struct {
			path   string
			status int
			want   string
		}{
			{"/health", 200, `{"status":"ok"}`},
			{"/ready", 200, `{"status":"ok"}`},
			{"/.well-known/matrix/client", 200, `{"m.homeserver":{"base_url":"https://shell.test"}}`},
			{"/.well-known/matrix/support", 200, `{"contacts":[{"role":"m.role.admin","email_address":"it@shell.test"}]}`},
			{"/", 200, "@name:shell.test"},
			{"/_matrix/client/v3/nothing", 404, "M_UNRECOGNIZED"},
			{"/metrics", 200, `moothall_http_request_duration_seconds_count{method="GET",route="/health",status="2xx"} 1`},
			{"/metrics", 200, "moothall_log_applied_position"},
			{"/metrics", 200, "go_goroutines"},
		} {
			resp, body := get(t, http.DefaultClient, s.URL()+tc.path)
			if resp.StatusCode != tc.status || !strings.Contains(body, tc.want) {
				t.Errorf("%s: %d %.2000s, want %d %s", tc.path, resp.StatusCode, body, tc.status, tc.want)
			}
			if tc.path == "/ready" && time.Since(began) > 10*time.Second {
				t.Errorf("the server was ready after %v", time.Since(began))
			}
		}
	})
}

// TestMetricsApart asks the two kinds of listeners for what the other one serves.
func TestMetricsApart(t *testing.T) {
	port := process.FreeAddress(t)
	cfg := settings(store.Config{DataDir: t.TempDir()})
	cfg.Metrics.Address = port
	s, _ := start(t, cfg)
	for path, want := range map[string]int{s.URL() + "/metrics": 404, "http://" + port + "/metrics": 200, "http://" + port + "/": 404, "http://" + port + "/health": 200} {
		if resp, _ := get(t, http.DefaultClient, path); resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
}

func TestPages(t *testing.T) {
	s, _ := start(t, settings(store.Config{DataDir: t.TempDir()}))
	setup := s.URL() + strings.TrimPrefix(s.SetupLink(), "https://shell.test")
	for _, tc := range []struct{ url, accept, want string }{
		{s.URL() + "/", "", `lang="en"`},
		{s.URL() + "/", "zh-CN,zh;q=0.9,en;q=0.8", `<html lang="zh">`},
		{s.URL() + "/", "zh-TW", `<html lang="zh">`},
		{s.URL() + "/", "fr,en;q=0.5", `<html lang="en">`},
		{s.URL() + "/?lang=zh", "en", `<html lang="zh">`},
		{s.URL() + "/?lang=%3Cscript%3E", "en", `<html lang="en">`},
		{setup, "en", "Create the administrator"},
		{setup, "zh", "创建管理员"},
		{s.URL() + "/setup", "en", "This link is not valid"},
		{s.URL() + "/setup?token=%22%3E%3Cscript%3E", "zh", "链接无效"},
	} {
		resp, body := get(t, http.DefaultClient, tc.url, "Accept-Language", tc.accept)
		if !strings.Contains(body, tc.want) || strings.Contains(body, "<script") {
			t.Errorf("%s for %q lacks %q:\n%s", tc.url, tc.accept, tc.want, body)
		}
		policy := resp.Header.Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none'") || resp.Header.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s has the policy %q", tc.url, policy)
		}
		if m := regexp.MustCompile(`(?:src|href)="(?:https?:)?//`).FindString(body); m != "" {
			t.Errorf("%s loads something from elsewhere: %s", tc.url, m)
		}
	}
}

// TestSetup makes the first administrator by the link, which works once.
func TestSetup(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db store.Config) {
		cfg := settings(db)
		s, stop := start(t, cfg)
		first := token(t, s)
		post := func(token, user, password, again string) (int, string) {
			resp, err := http.PostForm(s.URL()+"/setup", url.Values{"token": {token}, "username": {user}, "password": {password}, "password2": {again}})
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			return resp.StatusCode, string(b)
		}
		for _, tc := range []struct {
			token, user, password, again string
			status                       int
			want                         string
		}{
			{"wrong", "boss", "long enough", "long enough", 403, "not valid"},
			{"", "boss", "long enough", "long enough", 403, "not valid"},
			{first, "boss", "long enough", "different", 400, "not the same"},
			{first, "boss", "short", "short", 400, "at least 8"},
			{first, "b o s s", "long enough", "long enough", 400, "not possible"},
			{first, `"><script>`, "long enough", "long enough", 400, "not possible"},
		} {
			status, body := post(tc.token, tc.user, tc.password, tc.again)
			if status != tc.status || !strings.Contains(body, tc.want) || strings.Contains(body, "<script") {
				t.Errorf("%q %q: %d, want %d with %q", tc.user, tc.password, status, tc.status, tc.want)
			}
		}
		// A restart prints another link; the earlier one stays good.
		stop()
		s, stop = start(t, cfg)
		if second := token(t, s); second == first {
			t.Error("both starts printed the same link")
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		made := map[int]int{}
		for i := range 4 {
			wg.Go(func() {
				status, _ := post(first, fmt.Sprintf("boss%d", i), "long enough", "long enough")
				mu.Lock()
				defer mu.Unlock()
				made[status]++
			})
		}
		wg.Wait()
		if made[200] != 1 || made[403] != 3 {
			t.Errorf("four used the link at once: %v", made)
		}
		if status, _ := post(token(t, s), "other", "long enough", "long enough"); status != 403 {
			t.Errorf("a second administrator by the other link: %d", status)
		}
		stop()
		s, _ = start(t, cfg)
		if s.SetupLink() != "" {
			t.Error("a server with an administrator prints a link")
		}
	})
}

func token(t *testing.T, s *homeserver.Server) string {
	t.Helper()
	_, token, ok := strings.Cut(s.SetupLink(), "/setup?token=")
	if !ok || len(token) < 20 {
		t.Fatalf("the setup link is %q", s.SetupLink())
	}
	return token
}

// TestStartFailures starts servers that cannot run: each gets one clear line.
func TestStartFailures(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	fails := func(t *testing.T, cfg homeserver.Config, want string) {
		t.Helper()
		s, err := homeserver.New(t.Context(), cfg, log)
		if err == nil {
			_ = s.Close()
			t.Fatalf("it was built, want %q", want)
		}
		if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %q, want %q", err, want)
		}
	}
	t.Run("port in use", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		cfg := settings(store.Config{DataDir: t.TempDir()})
		cfg.Listen[0].Address = l.Addr().String()
		fails(t, cfg, "in use by another program")
	})
	t.Run("data directory is a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		fails(t, settings(store.Config{DataDir: file}), "data_dir")
	})
	t.Run("data directory cannot be written", func(t *testing.T) {
		fails(t, settings(store.Config{DataDir: "/proc/self"}), "data_dir: /proc/self cannot be written to")
	})
	t.Run("certificate missing", func(t *testing.T) {
		cfg := settings(store.Config{DataDir: t.TempDir()})
		cfg.Listen[0].TLS = homeserver.TLS{Certificate: "/none.pem", Key: "/none.key"}
		fails(t, cfg, "listen[0].tls: stat /none.pem")
	})
	t.Run("no PostgreSQL", func(t *testing.T) {
		fails(t, settings(store.Config{DataDir: t.TempDir(), URL: "postgres://127.0.0.1:1/x?sslmode=disable"}), "127.0.0.1")
	})
	t.Run("databases", func(t *testing.T) {
		storetest.Each(t, func(t *testing.T, db store.Config) {
			cfg := settings(db)
			_, stop := start(t, cfg)
			stop()
			other := cfg
			other.ServerName = "other.test"
			fails(t, other, `server_name is "other.test", but this database belongs to "shell.test"`)
			st := storetest.Open(t, db)
			if err := st.Write(t.Context(), func(tx *store.Tx) error {
				_, err := tx.Exec(`INSERT INTO schema_migrations (number, name) VALUES (9999, 'later')`)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			fails(t, cfg, "newer version of moothall")
		})
	})
}

// TestShutdown ends a server while a request is being sent: it is still answered.
func TestShutdown(t *testing.T) {
	s, stop := start(t, settings(store.Config{DataDir: t.TempDir()}))
	c, err := net.Dial("tcp", strings.TrimPrefix(s.URL(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	body := "token=x&username=a&password=b&password2=c"
	fmt.Fprintf(c, "POST /setup HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: %d\r\n\r\n%s", len(body), body[:10])
	time.Sleep(50 * time.Millisecond)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	time.Sleep(800 * time.Millisecond) // clients with kept connections get half a second to leave
	if _, err := net.Dial("tcp", strings.TrimPrefix(s.URL(), "http://")); err == nil {
		t.Error("a server that shuts down takes new connections")
	}
	fmt.Fprint(c, body[10:])
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 400 {
		t.Errorf("the request under way: %v %v", resp, err)
	}
	select {
	case <-stopped:
	case <-time.After(testkit.Patience):
		t.Error("the server did not stop")
	}
}

// TestTLS serves HTTP/2 with a certificate, replaces it and waits for the new one.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	cfg := settings(store.Config{DataDir: t.TempDir()})
	cfg.Listen[0].TLS = homeserver.TLS{Certificate: filepath.Join(dir, "c.pem"), Key: filepath.Join(dir, "k.pem")}
	writeCertificate(t, cfg.Listen[0].TLS, 1)
	s, _ := start(t, cfg)
	if !strings.HasPrefix(s.URL(), "https://") {
		t.Errorf("the URL is %s", s.URL())
	}
	serial := func() (int64, string) {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true, DisableKeepAlives: true}}
		resp, _ := get(t, client, s.URL()+"/health")
		return resp.TLS.PeerCertificates[0].SerialNumber.Int64(), resp.Proto
	}
	if n, proto := serial(); n != 1 || proto != "HTTP/2.0" {
		t.Errorf("certificate %d over %s", n, proto)
	}
	// A key that does not fit leaves the old certificate in use.
	if err := os.WriteFile(cfg.Listen[0].TLS.Key, []byte("half a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2100 * time.Millisecond)
	if n, _ := serial(); n != 1 {
		t.Errorf("with a broken key: certificate %d", n)
	}
	writeCertificate(t, cfg.Listen[0].TLS, 2)
	testkit.Eventually(t, "the new certificate is in use", func() bool {
		n, _ := serial()
		return n == 2
	})
}

func writeCertificate(t *testing.T, files homeserver.TLS, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "shell.test"}, DNSNames: []string{"shell.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{files.Certificate: {Type: "CERTIFICATE", Bytes: cert}, files.Key: {Type: "PRIVATE KEY", Bytes: der}} {
		var b bytes.Buffer
		if err := pem.Encode(&b, block); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCommands makes and changes an account beside a running server.
func TestCommands(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db store.Config) {
		cfg := settings(db)
		start(t, cfg)
		log := slog.New(slog.DiscardHandler)
		user, err := homeserver.CreateUser(t.Context(), cfg, log, "Alice", "long enough", true)
		if err != nil || user != "@alice:shell.test" {
			t.Fatalf("%s, %v", user, err)
		}
		for _, tc := range []struct{ name, password, want string }{
			{"alice", "long enough", "taken"}, {"bob", "short", "at least 8"}, {"b b", "long enough", "username"},
		} {
			if _, err := homeserver.CreateUser(t.Context(), cfg, log, tc.name, tc.password, false); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("create %s: %v, want %s", tc.name, err, tc.want)
			}
		}
		if _, err := homeserver.SetPassword(t.Context(), cfg, log, "@alice:shell.test", "another one"); err != nil {
			t.Error(err)
		}
		if _, err := homeserver.SetPassword(t.Context(), cfg, log, "nobody", "another one"); err == nil {
			t.Error("an account that does not exist got a password")
		}
	})
}
