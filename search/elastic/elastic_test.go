package elastic

import (
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/moothall/moothall/search"
)

// TestWay looks at how requests travel: over TLS with a certificate of one's own, with the key, to the nodes that are there.
func TestWay(t *testing.T) {
	var asked atomic.Int64
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if got := r.Header.Get("Authorization"); got != "APIKey c2VjcmV0" && got != "ApiKey c2VjcmV0" {
			t.Errorf("Authorization: %q", got)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"hits":{"total":{"value":7,"relation":"eq"},"hits":[]}}`)
	})
	node := httptest.NewUnstartedServer(answer)
	node.Config.ErrorLog = log.New(io.Discard, "", 0) // the client without the certificate
	node.StartTLS()
	defer node.Close()
	dead := httptest.NewServer(answer)
	dead.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: node.Certificate().Raw})

	x, err := New(Config{URLs: []string{dead.URL, node.URL}, APIKey: "c2VjcmV0", CA: ca, Prefix: "p", Shards: 1})
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		p, err := x.Search(t.Context(), &search.Query{View: search.ViewUser})
		if err != nil || p.Total != 7 {
			t.Fatalf("%v %v", p, err)
		}
	}
	if asked.Load() != 4 {
		t.Errorf("the node was asked %d times", asked.Load())
	}
	x, err = New(Config{URLs: []string{node.URL}, APIKey: "c2VjcmV0", Prefix: "p", Shards: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := x.Search(t.Context(), &search.Query{View: search.ViewUser}); err == nil {
		t.Errorf("a certificate that nobody vouches for is accepted")
	}
	if _, err := New(Config{URLs: []string{node.URL}, CA: []byte("no certificate")}); err == nil {
		t.Errorf("certificates that are none are accepted")
	}
}
