package hr

import (
	"context"
	"fmt"
	"html"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	announcements  = "/_moothall/hr/v1/announcements"
	announceChunk  = 20
	announceAtOnce = 4
	maxAnnounce    = 30_000 // bytes of an announcement
)

// announceRequest is the body of POST /_moothall/hr/v1/announcements.
type announceRequest struct {
	ID    string     `json:"id"` // of the HR system's choice: the same one announces once
	Title string     `json:"title"`
	Text  string     `json:"text"`
	HTML  string     `json:"html"`
	To    announceTo `json:"to"`
	Via   string     `json:"via"` // dm or room; "": the room where there is one
}

// announceTo is whom an announcement is for: one of these.
type announceTo struct {
	Everyone   bool     `json:"everyone"`
	Department string   `json:"department"`
	Group      string   `json:"group"` // id of a SCIM group
	Users      []string `json:"users"` // Matrix user ids or ids of SCIM users
	Room       string   `json:"room"`  // room id or alias
}

// announceStatus is what became of an announcement.
type announceStatus struct {
	ID         string          `json:"id"`
	Created    string          `json:"created"`
	Done       bool            `json:"done"`
	Places     int             `json:"places"` // rooms and direct chats
	Sent       int             `json:"sent"`
	Failed     []announceFault `json:"failed"`
	Recipients int64           `json:"recipients"`
	Read       int64           `json:"read"`
}

type announceFault struct {
	Place string `json:"place"`
	Why   string `json:"why"`
}

// announce handles POST /_moothall/hr/v1/announcements.
func (h *HR) announce(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[announceRequest](r)
	if err != nil {
		return err
	}
	ctx := r.Context()
	if err := req.check(); err != nil {
		return err
	}
	if req.ID == "" {
		req.ID = newID()
	}
	places, err := h.places(ctx, &req)
	if err != nil {
		return err
	}
	if len(places) == 0 {
		return bad(invalidValue, "'to' names nobody who could be told now")
	}
	a := store.Announcement{ID: req.ID, Created: h.now(), Creator: audit.SourceOf(ctx).Session, Content: req.content()}
	isNew := false
	err = h.d.Store.Write(ctx, func(tx *store.Tx) error {
		var err error
		if isNew, err = tx.InsertAnnouncement(a, places); err != nil || !isNew {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{Action: "hr.announced", Target: a.ID, Details: map[string]any{"places": len(places), "title": req.Title}})
	})
	if err != nil {
		return err
	}
	status := http.StatusOK // it was asked for before
	if isNew {
		status = http.StatusCreated
		h.wake()
	}
	out, err := h.status(ctx, a.ID)
	if err != nil {
		return err
	}
	return web.WriteJSONStatus(w, status, out)
}

func (req *announceRequest) check() error {
	named := 0
	for _, yes := range []bool{req.To.Everyone, req.To.Department != "", req.To.Group != "", len(req.To.Users) > 0, req.To.Room != ""} {
		if yes {
			named++
		}
	}
	switch {
	case named != 1:
		return bad(invalidValue, "'to' must have one of: everyone, department, group, users, room")
	case strings.TrimSpace(req.Text) == "":
		return bad(invalidValue, "'text' is missing")
	case len(req.Text)+len(req.HTML)+len(req.Title) > maxAnnounce:
		return bad(invalidValue, "the announcement has more than %d bytes", maxAnnounce)
	case req.Via != "" && req.Via != "dm" && req.Via != "room":
		return bad(invalidValue, "'via' must be dm or room")
	case len(req.ID) > 200 || strings.ContainsAny(req.ID, "/\x00 "):
		return bad(invalidValue, "'id' may have 200 characters at most, and neither / nor spaces")
	}
	return nil
}

// content is the message.
func (req *announceRequest) content() []byte {
	plain, rich := []string{req.Text}, []string{req.HTML}
	if req.HTML == "" {
		rich = []string{strings.ReplaceAll(html.EscapeString(req.Text), "\n", "<br>")}
	}
	if req.Title != "" {
		plain = append([]string{req.Title}, plain...)
		rich = append([]string{"<strong>" + html.EscapeString(req.Title) + "</strong>"}, rich...)
	}
	return message(plain, rich)
}

// places are where an announcement goes to: rooms, and users for their room with the service account.
func (h *HR) places(ctx context.Context, req *announceRequest) ([]string, error) {
	var to []id.UserID
	var err error
	switch {
	case req.To.Room != "":
		return h.oneRoom(ctx, req)
	case len(req.To.Users) > 0:
		if req.Via == "room" {
			return nil, bad(invalidValue, "a list of users has no room: 'via' must be dm")
		}
		to, err = h.listed(ctx, req.To.Users)
	case req.To.Everyone:
		if req.Via == "room" {
			return nil, bad(invalidValue, "everyone has no room: name it in 'to.room', or 'via' must be dm")
		}
		err = h.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
			to, err = tx.ActiveSCIMAccounts(h.now(), "")
			return err
		})
	default:
		group, what := req.To.Group, "group"
		if req.To.Department != "" {
			group, what = departmentID(req.To.Department), "department"
		}
		members, found, err := h.d.Groups.Members(ctx, Source, group)
		if err != nil {
			return nil, err
		}
		if !found {
			return nil, bad(invalidValue, "there is no %s %q", what, req.To.Department+req.To.Group)
		}
		if req.Via != "dm" {
			rooms, err := h.talkRooms(ctx, group)
			if err != nil || len(rooms) > 0 {
				return rooms, err
			}
			if req.Via == "room" {
				return nil, bad(invalidValue, "the %s %q has no room", what, req.To.Department+req.To.Group)
			}
		}
		to = members
	}
	if err != nil {
		return nil, err
	}
	return h.reachable(ctx, to)
}

// reachable leaves out who cannot read now.
func (h *HR) reachable(ctx context.Context, users []id.UserID) ([]string, error) {
	var states map[id.UserID]store.AccountState
	err := h.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var err error
		states, err = tx.AccountStates(users)
		return err
	})
	var out []string
	for _, u := range users {
		if s, exists := states[u]; exists && !s.Deactivated && !s.Locked {
			out = append(out, string(u))
		}
	}
	return out, err
}

// talkRooms are the rooms of a group in which people talk: spaces are none.
func (h *HR) talkRooms(ctx context.Context, group string) ([]string, error) {
	list, err := h.d.Groups.RoomsOf(ctx, Source, group)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, roomID := range list {
		rm, err := h.d.Rooms.Room(ctx, roomID)
		if err != nil {
			return nil, err
		}
		if rm.Type() != "m.space" {
			out = append(out, string(roomID))
		}
	}
	return out, nil
}

func (h *HR) listed(ctx context.Context, list []string) ([]id.UserID, error) {
	var known map[string]id.UserID
	err := h.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var err error
		known, err = tx.SCIMAccounts(list)
		return err
	})
	if err != nil {
		return nil, err
	}
	var out []id.UserID
	for _, s := range list {
		u := id.UserID(s)
		if known[s] != "" {
			u = known[s]
		} else if !event.ValidUserID(u) || u.Homeserver() != h.d.ServerName {
			return nil, bad(invalidValue, "'to.users' holds %q, which is neither the id of a user here nor that of a SCIM user", s)
		}
		if !slices.Contains(out, u) {
			out = append(out, u)
		}
	}
	return out, nil
}

// oneRoom finds a room by id or alias; the service account has to be in it.
func (h *HR) oneRoom(ctx context.Context, req *announceRequest) ([]string, error) {
	if req.Via == "dm" {
		return nil, bad(invalidValue, "'to.room' is a room: 'via' cannot be dm")
	}
	var rm *room.Room
	var err error
	if strings.HasPrefix(req.To.Room, "#") {
		var alias store.Alias
		var found bool
		err = h.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
			alias, found, err = tx.AliasByName(req.To.Room)
			return err
		})
		if err == nil && !found {
			return nil, bad(invalidValue, "there is no room %q", req.To.Room)
		}
		if err == nil {
			rm, err = h.d.Rooms.RoomByNID(ctx, alias.Room)
		}
	} else {
		rm, err = h.d.Rooms.Room(ctx, id.RoomID(req.To.Room))
	}
	if mxerr.Is(err, "M_NOT_FOUND") {
		return nil, bad(invalidValue, "there is no room %q", req.To.Room)
	}
	if err != nil {
		return nil, err
	}
	service, err := h.d.Groups.Service(ctx)
	if err != nil {
		return nil, err
	}
	if rm.Membership(service) != room.MembershipJoin {
		return nil, bad(invalidValue, "%s is not in the room %q: invite it first", service, req.To.Room)
	}
	return []string{string(rm.ID())}, nil
}

// announcement handles GET /_moothall/hr/v1/announcements/{id}.
func (h *HR) announcement(w http.ResponseWriter, r *http.Request) error {
	out, err := h.status(r.Context(), web.PathParam(r, "id"))
	if err != nil {
		return err
	}
	return web.WriteJSON(w, out)
}

func (h *HR) status(ctx context.Context, announcement string) (announceStatus, error) {
	service, err := h.d.Groups.Service(ctx)
	if err != nil {
		return announceStatus{}, err
	}
	out := announceStatus{ID: announcement, Failed: []announceFault{}}
	err = h.d.Store.Read(ctx, func(tx *store.Tx) error {
		a, found, err := tx.Announcement(announcement)
		if err != nil {
			return err
		}
		if !found {
			return notFound("announcement", announcement)
		}
		out.Created, out.Done = formatTime(a.Created), a.Done
		places, err := tx.AnnouncementPlaces(announcement)
		if err != nil {
			return err
		}
		out.Places, out.Sent, out.Failed = len(places), 0, []announceFault{}
		for _, p := range places {
			switch {
			case p.Room != 0:
				out.Sent++
			case p.Failed != "":
				out.Failed = append(out.Failed, announceFault{p.Place, p.Failed})
			}
		}
		out.Recipients, out.Read, err = tx.AnnouncementReaders(announcement, service)
		return err
	})
	return out, err
}

// announceAll sends what is not sent yet. It may be interrupted: a message goes to each place once.
func (h *HR) announceAll(ctx context.Context) error {
	var open []string
	err := h.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var err error
		open, err = tx.OpenAnnouncements()
		return err
	})
	if err != nil {
		return err
	}
	for _, announcement := range open {
		if err := h.announceOne(ctx, announcement); err != nil {
			return fmt.Errorf("announcement %s: %w", announcement, err)
		}
	}
	return nil
}

func (h *HR) announceOne(ctx context.Context, announcement string) error {
	for {
		var a store.Announcement
		var places []string
		err := h.d.Store.Read(ctx, func(tx *store.Tx) error {
			var err error
			if a, _, err = tx.Announcement(announcement); err != nil {
				return err
			}
			places, err = tx.OpenPlaces(announcement, announceChunk)
			return err
		})
		if err != nil {
			return err
		}
		if len(places) == 0 {
			return h.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.DoneAnnouncement(announcement) })
		}
		work, ctx := errgroup.WithContext(ctx)
		work.SetLimit(announceAtOnce)
		for _, place := range places {
			work.Go(func() error { return h.announceAt(ctx, a, place) })
		}
		if err := work.Wait(); err != nil {
			return err
		}
	}
}

func (h *HR) announceAt(ctx context.Context, a store.Announcement, place string) error {
	p := store.AnnouncementPlace{Place: place}
	err := h.sendAt(ctx, a, &p)
	if e := mxerr.As(err); e != nil && e.Status < 500 {
		p.Failed = e.Message
	} else if err != nil {
		return err
	}
	return h.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.SentPlace(a.ID, p) })
}

func (h *HR) sendAt(ctx context.Context, a store.Announcement, p *store.AnnouncementPlace) error {
	roomID := id.RoomID(p.Place)
	if strings.HasPrefix(p.Place, "@") {
		var err error
		if roomID, err = h.serviceRoom(ctx, id.UserID(p.Place)); err != nil {
			return err
		}
	}
	eventID, err := h.post(ctx, roomID, "announcement/"+a.ID, a.Content)
	if err != nil {
		return err
	}
	e, err := h.d.Rooms.EventByID(ctx, eventID)
	if err != nil || e == nil {
		return err
	}
	p.Room, p.EventID, p.Ord = e.Room, eventID, e.Ord
	return nil
}
