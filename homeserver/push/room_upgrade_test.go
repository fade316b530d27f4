package push

import (
	"strings"
	"testing"
)

func TestCopyRoomRules(t *testing.T) {
	const muted = `{"rules":{"override":[{"rule_id":"!old:x","enabled":true,"actions":[],"conditions":[{"kind":"event_match","key":"room_id","pattern":"!old:x"}]}],` +
		`"room":[{"rule_id":"!old:x","enabled":true,"actions":["notify"]},{"rule_id":"!kept:x","enabled":true,"actions":[]}]}}`
	d, err := ParseDelta([]byte(muted))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time changes nothing
		if err := d.copyRoom("!old:x", "!new:x"); err != nil {
			t.Fatal(err)
		}
	}
	if len(d.Rules[Override]) != 2 || len(d.Rules[Room]) != 3 {
		t.Fatalf("the rules are %+v", d.Rules)
	}
	at := d.index(Override, "!new:x")
	if at < 0 || d.Rules[Override][at].Conditions[0].Pattern != "!new:x" || d.Rules[Override][1-at].Conditions[0].Pattern != "!old:x" {
		t.Errorf("the overrides are %+v", d.Rules[Override])
	}
	b, err := d.Encode()
	if err != nil || strings.Count(string(b), "!new:x") != 3 {
		t.Errorf("stored is %s, %v", b, err)
	}
}
