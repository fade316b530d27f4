package push

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

func TestRuleEndpoints(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		w := newWorld(t, cfg)
		all := w.do(alice, "GET", "/pushrules/", "", 200, "")
		if n := len(all.Get("global.override").Array()); n != 10 {
			t.Errorf("%d override rules", n)
		}
		for _, path := range []string{"/pushrules", "/pushrules/global/", "/pushrules/global"} {
			w.do(alice, "GET", path, "", 200, "")
		}
		_, before, err := w.AccountData(context.Background(), alice)
		if err != nil || before != 0 {
			t.Fatal(before, err)
		}

		w.do(alice, "PUT", "/pushrules/global/content/cake", `{"actions":["notify"],"pattern":"cake*lie"}`, 200, "")
		r := w.do(alice, "GET", "/pushrules/global/content/cake", "", 200, "")
		if r.Raw != `{"rule_id":"cake","default":false,"enabled":true,"actions":["notify"],"pattern":"cake*lie"}` {
			t.Errorf("got %s", r.Raw)
		}
		w.do(alice, "PUT", "/pushrules/global/room/%21room%3Aexample.com", `{"actions":[]}`, 200, "")
		w.do(alice, "GET", "/pushrules/global/room/!room:example.com", "", 200, "")
		w.do(bob, "GET", "/pushrules/global/content/cake", "", 404, "M_NOT_FOUND")

		w.do(alice, "PUT", "/pushrules/global/content/cake/enabled", `{"enabled":false}`, 200, "")
		if w.do(alice, "GET", "/pushrules/global/content/cake/enabled", "", 200, "").Get("enabled").Bool() {
			t.Error("still enabled")
		}
		w.do(alice, "PUT", "/pushrules/global/underride/.m.rule.message/actions", `{"actions":["notify",{"set_tweak":"highlight"}]}`, 200, "")
		if got := w.do(alice, "GET", "/pushrules/global/underride/.m.rule.message/actions", "", 200, "").Raw; got != `{"actions":["notify",{"set_tweak":"highlight"}]}` {
			t.Errorf("got %s", got)
		}
		w.do(alice, "PUT", "/pushrules/global/override/.m.rule.master/enabled", `{"enabled":true}`, 200, "")

		content, pos, err := w.AccountData(context.Background(), alice)
		if err != nil || pos == 0 || len(content) == 0 {
			t.Errorf("account data: %d %v", pos, err)
		}
		var entries []store.Entry
		err = w.Store.Read(context.Background(), func(tx *store.Tx) (err error) { entries, err = tx.ReadLog(0, 100); return err })
		if err != nil || len(entries) != 5 {
			t.Fatalf("%d entries: %v", len(entries), err)
		}
		if e := entries[4]; e.Kind != store.KindAccountData || e.User != alice || e.Key != "m.push_rules" || e.Pos != pos {
			t.Errorf("announced %+v", e)
		}

		for _, tc := range []struct {
			method, path, body string
			status             int
			errcode            string
		}{
			{"PUT", "/pushrules/global/content/x", `{"actions":["notify"]}`, 400, "M_MISSING_PARAM"},
			{"PUT", "/pushrules/global/content/x", `{`, 400, "M_NOT_JSON"},
			{"PUT", "/pushrules/global/content/x", `[]`, 400, "M_BAD_JSON"},
			{"PUT", "/pushrules/global/override/.x", `{"actions":[]}`, 400, "M_INVALID_PARAM"},
			{"PUT", "/pushrules/global/override/a%2Fb", `{"actions":[]}`, 400, "M_INVALID_PARAM"},
			{"PUT", "/pushrules/global/override/a%5Cb", `{"actions":[]}`, 400, "M_INVALID_PARAM"},
			{"PUT", "/pushrules/global/override/a%00b", `{"actions":[]}`, 400, "M_INVALID_PARAM"},
			{"PUT", "/pushrules/global/override/x?before=nope", `{"actions":[]}`, 400, "M_UNKNOWN"},
			{"PUT", "/pushrules/global/overrule/x", `{"actions":[]}`, 400, "M_INVALID_PARAM"},
			{"GET", "/pushrules/global/overrule/x", ``, 404, "M_NOT_FOUND"},
			{"GET", "/pushrules/device/override/x", ``, 404, "M_UNRECOGNIZED"},
			{"POST", "/pushrules/global/override/x", `{}`, 405, "M_UNRECOGNIZED"},
			{"DELETE", "/pushrules/global/override/.m.rule.master", ``, 400, "M_INVALID_PARAM"},
			{"DELETE", "/pushrules/global/override/nope", ``, 404, "M_NOT_FOUND"},
			{"PUT", "/pushrules/global/override/nope/enabled", `{"enabled":true}`, 404, "M_NOT_FOUND"},
			{"PUT", "/pushrules/global/content/cake/enabled", `{}`, 400, "M_MISSING_PARAM"},
			{"PUT", "/pushrules/global/content/cake/enabled", `{"enabled":"yes"}`, 400, "M_BAD_JSON"},
			{"PUT", "/pushrules/global/content/cake/actions", `{}`, 400, "M_MISSING_PARAM"},
			{"PUT", "/pushrules/global/content/cake/actions", `{"actions":null}`, 400, "M_BAD_JSON"},
			{"PUT", "/pushrules/global/override/nope/actions", `{"actions":[]}`, 404, "M_NOT_FOUND"},
		} {
			w.do(alice, tc.method, tc.path, tc.body, tc.status, tc.errcode)
		}
		w.do(alice, "DELETE", "/pushrules/global/content/cake", "", 200, "")
		w.do(alice, "GET", "/pushrules/global/content/cake", "", 404, "M_NOT_FOUND")
	})
}

// TestRulesConcurrent: first changes of one user, made at once, are all kept.
func TestRulesConcurrent(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		w := newWorld(t, cfg)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				w.do(alice, "PUT", fmt.Sprintf("/pushrules/global/sender/@u%d:x", i), `{"actions":[]}`, 200, "")
			})
		}
		wg.Wait()
		if n := len(w.do(alice, "GET", "/pushrules/", "", 200, "").Get("global.sender").Array()); n != 8 {
			t.Errorf("%d of 8 rules", n)
		}
	})
}
