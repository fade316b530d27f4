package homeserver

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/appservices"
	"github.com/moothall/moothall/appservices/hooks"
	"github.com/moothall/moothall/appservices/hr"
	"github.com/moothall/moothall/appservices/oa"
	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/adminapi"
	"github.com/moothall/moothall/homeserver/clientapi"
	"github.com/moothall/moothall/homeserver/clientsync"
	"github.com/moothall/moothall/homeserver/groups"
	"github.com/moothall/moothall/homeserver/media"
	"github.com/moothall/moothall/homeserver/notices"
	"github.com/moothall/moothall/homeserver/people"
	"github.com/moothall/moothall/homeserver/push"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/rtc"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
	"github.com/moothall/moothall/ldapsync"
	"github.com/moothall/moothall/search"
	"github.com/moothall/moothall/sso"
	"github.com/moothall/moothall/sso/factor"
	"github.com/moothall/moothall/sso/upstream"
)

// parts are the features that stand on rooms and accounts.
type parts struct {
	rooms     *room.Rooms
	keys      *account.Keys
	data      *account.Data
	profiles  *account.Profiles
	client    *clientapi.API
	rtc       *rtc.RTC
	notices   *notices.Notices
	admin     *adminapi.API
	sync      *clientsync.Sync
	push      *push.Push
	media     *media.Media
	outbox    *account.Outbox
	audit     *audit.Log
	people    *people.People
	directory *ldapsync.Sync
	groups    *groups.Groups
	hr        *hr.HR
	hooks     *hooks.Hooks
	oa        *oa.OA
	search    *search.Search // nil: switched off
	compliance
	services *appservices.Services

	providers *upstream.Providers
	factors   *factor.Factors
	sso       *sso.SSO
}

// buildParts builds the features and hands each what it needs of the others.
func (s *Server) buildParts() error {
	others, err := s.newFederation()
	if err != nil {
		return err
	}
	s.rooms = room.New(room.Deps{
		Store: s.store, ServerName: s.cfg.ServerName, Key: s.key, Logger: s.log, Features: pushFeatures,
		NewRoom: s.newRoomPolicy, Check: s.sendPolicy, Policy: others.Sign,
	})
	s.keys = account.NewKeys(account.KeysDeps{Store: s.store, ServerName: s.cfg.ServerName, Logger: s.log})
	s.data = account.NewData(account.DataDeps{Store: s.store})
	s.profiles = account.NewProfiles(account.ProfilesDeps{
		Store: s.store, ServerName: s.cfg.ServerName, Logger: s.log, Propagate: s.rooms.SetProfile,
	})
	mailer, err := newMailer(&s.cfg)
	if err != nil {
		return err
	}
	s.audit = newAuditLog(&s.cfg, s.store, s.key, s.log)
	s.outbox = account.NewOutbox(account.OutboxDeps{Store: s.store, Logger: s.log, Send: mailer})
	s.accounts = account.New(account.Deps{
		Store: s.store, ServerName: s.cfg.ServerName, Logger: s.log, Config: s.cfg.AccountConfig(), Audit: s.audit,
		OnDeviceDeleted:   []func(*store.Tx, id.UserID, id.DeviceID) error{s.keys.DeviceDeleted, clientsync.DeviceDeleted, push.DeviceDeleted, upstream.DeviceDeleted, sso.DeviceDeleted},
		OnDeviceReused:    []func(*store.Tx, id.UserID, id.DeviceID) error{upstream.DeviceDeleted, sso.DeviceDeleted},
		LeaveAllRooms:     s.rooms.LeaveAll,
		MailQueued:        s.outbox.Kick,
		Directory:         s.directoryPassword,
		PasswordElsewhere: s.passwordElsewhere,
		Gate:              s.factorGate,
		Exclusive:         s.exclusiveUser,
		AppPassword:       s.appPassword,
	})
	if s.factors, err = s.newFactors(); err != nil {
		return err
	}
	outside, err := s.cfg.outsideClient()
	if err != nil {
		return err
	}
	outgoing, err := push.NewClient(outside)
	if err != nil {
		return err
	}
	s.push = push.New(push.Deps{
		Store: s.store, Log: s.log, Client: outgoing, Config: push.Config{AllowHTTP: s.cfg.Push.AllowPrivateAddresses, ThreadSubscriptions: s.cfg.Push.ThreadSubscriptions},
		Event: s.pushEvent, RoomUsers: s.pushRoomUsers, Room: s.pushRoom,
		Unread: s.pushUnread, ReceiptUsers: s.receiptUsers, Ignores: s.ignores, Emails: s.pushEmails(),
	})
	s.sync = clientsync.New(clientsync.Deps{
		Store: s.store, Rooms: s.rooms, Data: s.data, Keys: s.keys, Logger: s.log,
		Rules: s.syncRules, PushRules: s.pushRules, Thread: threadOf, Bundle: s.bundle, SessionEnded: s.sessionEnded,
		Typing: s.typing, Presence: s.presence,
	})
	blobs, err := media.OpenLocal(s.cfg.MediaDir())
	if err != nil {
		return err
	}
	s.media = media.New(media.Deps{
		Store: s.store, Log: s.log, Blobs: blobs, ServerName: s.cfg.ServerName, Client: outgoing, Config: s.cfg.MediaConfig(),
	})
	s.people = people.New(people.Deps{
		Store: s.store, Accounts: s.accounts, Profiles: s.profiles, Logger: s.log,
		SavePhoto: s.media.SaveImage, DeactivateAfter: s.cfg.People.DeactivateAfter.Std(),
	})
	if s.providers, err = s.newProviders(); err != nil {
		return err
	}
	s.groups, err = groups.New(groups.Deps{
		Store: s.store, Rooms: s.rooms, Accounts: s.accounts, ServerName: s.cfg.ServerName, Config: s.cfg.GroupsConfig(), Logger: s.log,
	})
	if err != nil {
		return groupsFault(err)
	}
	if s.hr, err = s.newHR(); err != nil {
		return err
	}
	if s.oa, err = s.newOA(); err != nil {
		return err
	}
	if s.hooks, err = s.newHooks(); err != nil {
		return err
	}
	if s.directory, err = s.newDirectory(); err != nil {
		return err
	}
	rtcConfig, err := s.cfg.rtcConfig()
	if err != nil {
		return err
	}
	s.rtc = rtc.New(rtc.Deps{
		Store: s.store, Accounts: s.accounts, Rooms: s.rooms, Logger: s.log, ServerName: s.cfg.ServerName, PublicURL: s.cfg.PublicURL, Config: rtcConfig,
		Sent: func(ctx context.Context, roomID id.RoomID, eventType string) {
			s.client.EventSent(ctx, roomID, eventType)
		},
	})
	if s.search, err = s.buildSearch(); err != nil {
		return err
	}
	if s.sso, err = s.newSSO(); err != nil {
		return err
	}
	if s.services, err = s.newServices(); err != nil {
		return err
	}
	s.client = clientapi.New(clientapi.Deps{
		AppServices: s.clientServices(),
		SSO:         s.clientSSO(),
		Search:      s.searchFunc(),
		Delay:       s.rtc.Schedule,
		ServerName:  s.cfg.ServerName, PublicURL: s.cfg.PublicURL, Store: s.store, Accounts: s.accounts, Rooms: s.rooms,
		Limits: s.limits, Logger: s.log, CopyPushRule: s.push.CopyRoomRule, ThreadSubscriptions: s.cfg.Push.ThreadSubscriptions,
		UserDataDeps: clientapi.UserDataDeps{
			Keys: s.keys, Data: s.data, Profiles: s.profiles, ParseSyncToken: clientsync.ParsePosition, PushRules: s.pushRules,
			Turn: clientapi.TurnConfig{URIs: s.cfg.TURN.URIs, SharedSecret: string(s.cfg.TURN.SharedSecret), Lifetime: s.cfg.TURN.TTL.Std()},
		},
	})
	s.notices = notices.New(notices.Deps{
		Store: s.store, Rooms: s.rooms, Data: s.data, Profiles: s.profiles, Logger: s.log, Service: s.groups.Service, RoomName: s.cfg.Notices.RoomName,
		Join: s.cfg.Notices.AutoJoin,
	})
	if err := s.buildCompliance(); err != nil {
		return err
	}
	if s.console, err = s.newConsole(); err != nil {
		return err
	}
	s.admin = adminapi.New(adminapi.Deps{
		Notice:     s.notices.Send,
		ServerName: s.cfg.ServerName, Version: Version(), Store: s.store, Accounts: s.accounts, Profiles: s.profiles, Rooms: s.rooms,
		Audit: s.accounts.Audit, Logger: s.log, DropContents: s.media.DropContents,
	})
	return nil
}

// partRoutes are the tables of the features.
func (s *Server) partRoutes() [][]web.Route {
	return [][]web.Route{s.client.Routes(), s.sync.Routes(), s.push.Routes(), s.media.Routes(), s.admin.Routes(), s.rtc.Routes(), s.providers.Routes(), s.sso.Routes(), s.directory.Routes(), s.console.Routes(), s.hr.Routes(), s.hooks.Routes(), s.oa.Routes(), s.services.Routes()}
}

// listenersOfLog are the parts that follow the log in this process, rooms first: whoever is woken later finds them up to date.
func (s *Server) listenersOfLog() []store.Listener {
	return []store.Listener{
		s.rooms.Listener(), s.accounts.Listener(), s.keys.Listener(), s.data.Listener(), s.push.Listener(), s.sync.Listener(),
	}
}

// runParts runs what the features do by themselves.
func (s *Server) runParts(ctx context.Context, g *errgroup.Group) {
	for _, run := range []func(context.Context) error{s.rooms.Run, s.accounts.Run, s.keys.Run, s.profiles.Run, s.sync.Run, s.push.Run, s.media.Run, s.admin.Run, s.rtc.Run, s.outbox.Run, s.audit.Run, s.people.Run, s.groups.Run, s.hr.Run, s.hooks.Run, s.oa.Run, s.directory.Run, s.providers.Run, s.factors.Run, s.sso.Run, s.runSearch, s.runCompliance, s.runLimits, s.runMemory, s.runServices} {
		g.Go(func() error { return run(ctx) })
	}
}

// onBroadcast takes what processes tell each other beside the log.
func (s *Server) onBroadcast(topic, payload string) {
	s.sync.OnBroadcast(topic, payload)
	s.rtc.OnBroadcast(topic)
	s.services.OnBroadcast(topic, payload)
	s.onLimits(topic, payload)
	s.oa.OnBroadcast(topic, payload)
}

// outsideClient says how requests leave for addresses that users choose.
func (c *Config) outsideClient() (push.ClientConfig, error) {
	out := push.ClientConfig{Proxy: string(c.Outgoing.Proxy)}
	if c.Push.AllowPrivateAddresses {
		out.AllowPrivate = allAddresses
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

// MediaDir is the folder of the content repository.
func (c *Config) MediaDir() string {
	if c.Media.Path != "" {
		return c.Media.Path
	}
	return filepath.Join(c.DataDir, "media")
}
