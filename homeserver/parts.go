package homeserver

import (
	"context"
	"crypto/x509"
	"fmt"
	"net/netip"
	"os"

	"github.com/tidwall/gjson"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/clientapi"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/push"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// parts are the features that stand on rooms and accounts.
type parts struct {
	rooms  *room.Rooms
	client *clientapi.API
	push   *push.Push
}

// buildParts builds the features and hands each what it needs of the others.
func (s *Server) buildParts() error {
	s.rooms = room.New(room.Deps{
		Store: s.store, ServerName: s.cfg.ServerName, Key: s.key, Logger: s.log, Features: pushFeatures,
	})
	outside, err := s.cfg.outsideClient()
	if err != nil {
		return err
	}
	gateways, err := push.NewClient(outside)
	if err != nil {
		return err
	}
	s.push = push.New(push.Deps{
		Store: s.store, Log: s.log, Client: gateways, Config: push.Config{AllowHTTP: s.cfg.Push.AllowPrivateAddresses},
		Event: s.pushEvent, RoomUsers: s.pushRoomUsers, Room: s.pushRoom,
	})
	s.client = clientapi.New(clientapi.Deps{
		ServerName: s.cfg.ServerName, PublicURL: s.cfg.PublicURL, Store: s.store, Accounts: s.accounts, Rooms: s.rooms, Logger: s.log,
	})
	return nil
}

// partRoutes are the tables of the features.
func (s *Server) partRoutes() [][]web.Route {
	return [][]web.Route{s.client.Routes(), s.push.Routes()}
}

// listenersOfLog are the parts that follow the log in this process, rooms first: whoever is woken later finds them up to date.
func (s *Server) listenersOfLog() []store.Listener {
	return []store.Listener{s.rooms.Listener(), s.accounts.Listener(), s.push.Listener()}
}

// runParts runs what the features do by themselves.
func (s *Server) runParts(ctx context.Context, g *errgroup.Group) {
	g.Go(func() error { return s.rooms.Run(ctx) })
	g.Go(func() error { return s.push.Run(ctx) })
}

// pushFeatures computes the compact features that are stored with an event.
func pushFeatures(evType string, stateKey *string, content []byte, parent func(eventID string) []byte) []byte {
	f := push.FeaturesOf(evType, stateKey, content, func(eventID string) string {
		p, err := push.ParseFeatures(parent(eventID))
		if err != nil {
			return ""
		}
		return p.Thread
	})
	return f.AppendBinary(nil)
}

// pushEvent is an event as push rules look at it; nil where nobody is to hear of it.
func (s *Server) pushEvent(ctx context.Context, _, nid int64) (*push.EventView, error) {
	evs, err := s.rooms.EventsByNID(ctx, []int64{nid})
	if err != nil || len(evs) == 0 || evs[0].Status != store.StatusAccepted || evs[0].RedactedBy != 0 {
		return nil, err
	}
	return pushView(evs[0].PDU), nil
}

func pushView(p *event.Event) *push.EventView {
	v := &push.EventView{ID: string(p.ID()), RoomID: string(p.RoomID()), Type: p.Type(), Sender: string(p.Sender()), Content: p.Content(), OriginServerTS: p.OriginServerTS()}
	if k, ok := p.StateKey(); ok {
		v.StateKey = &k
	}
	return v
}

func (s *Server) pushRoomUsers(ctx context.Context, nid int64) ([]id.UserID, error) {
	r, err := s.rooms.RoomByNID(ctx, nid)
	if err != nil {
		return nil, err
	}
	var local []id.UserID
	for _, u := range r.Joined() {
		if u.Homeserver() == s.cfg.ServerName {
			local = append(local, u)
		}
	}
	return local, nil
}

// pushRoom is a room's state as notifications need it.
func (s *Server) pushRoom(ctx context.Context, nid int64) (push.RoomView, error) {
	r, err := s.rooms.RoomByNID(ctx, nid)
	if err != nil {
		return nil, err
	}
	return roomView{ctx, r}, nil
}

// roomView lives as long as one evaluation, which alone is why it holds a context.
type roomView struct {
	ctx context.Context
	r   *room.Room
}

func (v roomView) RoomID() id.RoomID                  { return v.r.ID() }
func (v roomView) MemberCount() int64                 { return int64(v.r.JoinedCount()) }
func (v roomView) Name() string                       { return v.r.Name() }
func (v roomView) Alias() string                      { return v.r.CanonicalAlias() }
func (v roomView) PowerLevel(u id.UserID) int64       { return v.r.PowerLevels().User(u) }
func (v roomView) NotificationLevel(key string) int64 { return v.r.PowerLevels().Notification(key) }

func (v roomView) DisplayName(u id.UserID) string {
	e, err := v.r.MemberEvent(v.ctx, u)
	if err != nil || e == nil {
		return "" // without a name, rules on it do not match
	}
	return gjson.GetBytes(e.PDU.Content(), "displayname").Str
}

// outsideClient says how requests leave for addresses that users choose.
func (c *Config) outsideClient() (push.ClientConfig, error) {
	out := push.ClientConfig{Proxy: string(c.Outgoing.Proxy)}
	if c.Push.AllowPrivateAddresses {
		out.AllowPrivate = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	}
	if c.Outgoing.CAFile == "" {
		return out, nil
	}
	pem, err := os.ReadFile(c.Outgoing.CAFile)
	if err != nil {
		return out, fmt.Errorf("outgoing.ca_file: %w", err)
	}
	out.RootCAs, err = x509.SystemCertPool()
	if err != nil {
		out.RootCAs = x509.NewCertPool()
	}
	if !out.RootCAs.AppendCertsFromPEM(pem) {
		return out, fmt.Errorf("outgoing.ca_file: %s holds no certificate in PEM form", c.Outgoing.CAFile)
	}
	return out, nil
}

// onBroadcast takes what other processes broadcast to the part it is for.
func (s *Server) onBroadcast(topic, payload string) {}
