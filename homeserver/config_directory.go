package homeserver

// People is about accounts that come from elsewhere.
type People struct {
	DeactivateAfter Duration `yaml:"deactivate_after"`
}

// Directory is a company's directory: Active Directory, OpenLDAP or another LDAP server.
type Directory struct {
	ID               string          `yaml:"id"`
	Type             string          `yaml:"type"` // openldap, active_directory, generic
	Servers          []string        `yaml:"servers"`
	StartTLS         bool            `yaml:"start_tls"`
	CAFile           string          `yaml:"ca_file"`
	BindDN           string          `yaml:"bind_dn"`
	BindPassword     Secret          `yaml:"bind_password"`
	BindPasswordFile string          `yaml:"bind_password_file"`
	Timeout          Duration        `yaml:"timeout"`
	Users            DirectoryUsers  `yaml:"users"`
	Groups           DirectoryGroups `yaml:"groups"`
	Units            DirectoryUnits  `yaml:"units"`
	Sync             DirectorySync   `yaml:"sync"`
	Safety           DirectorySafety `yaml:"safety"`
}

// DirectoryUsers says which entries are people and what is read of them.
type DirectoryUsers struct {
	Base         string              `yaml:"base"`
	Filter       string              `yaml:"filter"`
	Localpart    string              `yaml:"localpart"`
	ID           string              `yaml:"id"`
	Login        string              `yaml:"login"`
	DirectBind   string              `yaml:"direct_bind"`
	Passwords    string              `yaml:"passwords"` // directory (or empty), server
	LinkExisting bool                `yaml:"link_existing"`
	MaxPhoto     Size                `yaml:"max_photo"`
	Disabled     []string            `yaml:"disabled"`
	Attributes   DirectoryAttributes `yaml:"attributes"`
}

// Who checks the passwords of a directory's users.
const (
	passwordsDirectory = "directory"
	passwordsServer    = "server"
	syncOff            = "off" // of DirectorySync.Mode
)

// DirectoryAttributes names the attributes of a person's fields.
type DirectoryAttributes struct {
	DisplayName    string `yaml:"display_name"`
	Email          string `yaml:"email"`
	Phone          string `yaml:"phone"`
	Title          string `yaml:"title"`
	Department     string `yaml:"department"`
	Manager        string `yaml:"manager"`
	EmployeeNumber string `yaml:"employee_number"`
	Photo          string `yaml:"photo"`
	TimeZone       string `yaml:"time_zone"`
}

// DirectoryGroups says which entries are groups.
type DirectoryGroups struct {
	Base   string `yaml:"base"`
	Filter string `yaml:"filter"`
	Name   string `yaml:"name"`
	Member string `yaml:"member"`
}

// DirectoryUnits says which entries are the company's units.
type DirectoryUnits struct {
	Base      string `yaml:"base"`
	Filter    string `yaml:"filter"`
	Name      string `yaml:"name"`
	From      string `yaml:"from"`
	Separator string `yaml:"separator"`
}

// DirectorySync says when and how the directory is followed.
type DirectorySync struct {
	Mode      string   `yaml:"mode"` // auto (or empty), syncrepl, usn, dirsync, scan, off
	Interval  Duration `yaml:"interval"`
	Reconcile Duration `yaml:"reconcile"`
	PageSize  int      `yaml:"page_size"`
	Workers   int      `yaml:"workers"`
}

// DirectorySafety stops runs that would do too much.
type DirectorySafety struct {
	MaxShare float64 `yaml:"max_share"`
	MinCount int     `yaml:"min_count"`
}
