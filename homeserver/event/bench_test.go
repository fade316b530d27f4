package event

import (
	"fmt"
	"testing"

	"maunium.net/go/mautrix/id"
)

func benchRoom(b *testing.B) (*sim, *branch) {
	v, _ := LookupVersion(DefaultVersion)
	s, br := newSim(b, v, testKey(b), "")
	l := fullLevels(v)
	for i := range 200 {
		l.Users[id.UserID(fmt.Sprintf("@moderator%d:domain", i))] = 50
	}
	s.must(br, alice, typePowerLevels, ptr(""), l.json())
	s.must(br, alice, typeJoinRules, ptr(""), `{"join_rule":"public"}`)
	return s, br
}

const benchContent = `{"body":"The minutes of Tuesday are in the folder, please have a look before noon.","msgtype":"m.text","m.mentions":{}}`

func BenchmarkBuild(b *testing.B) {
	s, br := benchRoom(b)
	p := s.proto(br, alice, "m.room.message", nil, benchContent)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.v.Build(p, "domain", s.key); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheckProto(b *testing.B) {
	s, br := benchRoom(b)
	p := s.proto(br, alice, "m.room.message", nil, benchContent)
	b.ReportAllocs()
	for b.Loop() {
		if err := s.v.CheckProto(p, br.state); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	s, br := benchRoom(b)
	e := s.must(br, alice, "m.room.message", nil, benchContent)
	b.Run("known id", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.v.Parse(e.JSON(), e.ID()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("untrusted", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := s.v.ParseUntrusted(e.JSON()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkCanonicalJSON(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := CanonicalJSON([]byte(benchContent)); err != nil {
			b.Fatal(err)
		}
	}
}

// A room of 1000 members that has 50 ends, each with levels, a name and a member of its own.
func BenchmarkResolve(b *testing.B) {
	for _, name := range []string{"1", "11", "12"} {
		v, _ := LookupVersion(name)
		s, br := newSim(b, v, testKey(b), "")
		s.must(br, alice, typePowerLevels, ptr(""), fullLevels(v).json())
		s.must(br, alice, typeJoinRules, ptr(""), `{"join_rule":"public"}`)
		for i := range 1000 {
			user := id.UserID(fmt.Sprintf("@user%d:domain", i))
			s.member(br, user, user, join)
		}
		sets := make([]map[StateKeyTuple]*Event, 50)
		for i := range sets {
			end := br.fork()
			l := fullLevels(v)
			l.Invite = ptr(int64(i % 40))
			s.must(end, alice, typePowerLevels, ptr(""), l.json())
			s.must(end, alice, "m.room.name", ptr(""), fmt.Sprintf(`{"name":"%d"}`, i))
			s.member(end, alice, id.UserID(fmt.Sprintf("@user%d:domain", i)), ban)
			sets[i] = end.state
		}
		b.Run("v"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Resolve(sets, s.event); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
