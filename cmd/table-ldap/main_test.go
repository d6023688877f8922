package main

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/go-ldap/ldap/v3"

	"smtpd/table"
	"smtpd/table/tabletest"
)

func TestMain(m *testing.M) { tabletest.Main(m, main) }

// ldif is a directory with an entry for each alias: the name in userPassword,
// the one attribute of a person that is compared octet by octet, and
// the targets in sn.
func ldif(entries map[string]string) string {
	var b strings.Builder
	b.WriteString("dn: dc=test\nobjectClass: dcObject\nobjectClass: organization\ndc: test\no: test\n\n")
	for i, k := range tabletest.Sorted(entries) {
		fmt.Fprintf(&b, "dn: cn=%d,dc=test\nobjectClass: person\ncn: %d\nuserPassword:: %s\n", i, i, encode(k))
		fmt.Fprintf(&b, "sn:: %s\n\n", encode(entries[k]))
	}
	b.WriteString("dn: uid=dora,dc=test\nobjectClass: inetOrgPerson\nobjectClass: posixAccount\nuid: dora\ncn: dora\nsn: dora\n" +
		"mail: dora@ldap.test\nmail: dora@second.test\nuidNumber: 5002\ngidNumber: 5003\nhomeDirectory: /home/dora\n" +
		"userPassword: {CRYPT}$6$hash\n\n" +
		"dn: uid=nopass,dc=test\nobjectClass: inetOrgPerson\nuid: nopass\ncn: n\nsn: n\n")
	return b.String()
}

func encode(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func head(s *tabletest.Server) string {
	return "url " + s.LDAPURL() + "\nusername cn=admin,dc=test\npassword secret\nbasedn dc=test\n"
}

const aliasConf = "alias_filter (&(objectClass=person)(userPassword=%s))\nalias_attributes sn\n"

// TestServer has one server for all that is asked of it.
func TestServer(t *testing.T) {
	s := tabletest.LDAP(t, ldif(tabletest.Entries()))
	t.Run("table", func(t *testing.T) {
		tabletest.TestBackend(t, func(t *testing.T, _ map[string]string) table.Backend {
			return tabletest.Program(t, tabletest.Config(t, head(s)+aliasConf))
		})
	})
	t.Run("services", func(t *testing.T) { services(t, s) })
	t.Run("restart", func(t *testing.T) {
		tabletest.TestRestart(t, tabletest.Program(t, tabletest.Config(t, head(s)+aliasConf)), s)
	})
}

func services(t *testing.T, s *tabletest.Server) {
	conf := head(s) + `
domain_filter: (mail=*@%s)
domain_attributes: mail
userinfo_filter: (&(objectClass=posixAccount)(uid=%s))
userinfo_attributes: uidNumber, gidnumber, homeDirectory
credentials_filter: (uid=%s)
credentials_attributes: uid, userPassword
mailaddr_filter: (mail=%s)
mailaddrmap_filter: (uid=%s)
mailaddrmap_attributes: mail
`
	tab := table.New("t", "ldap", tabletest.Program(t, tabletest.Config(t, conf)))
	defer tab.Close()
	tests := []struct {
		service   table.Service
		key, want string
	}{
		{table.Domain, "second.test", "yes"},
		{table.Domain, "*", "no"},
		{table.Domain, "x.test", "no"},
		{table.Userinfo, "dora", "5002:5003:/home/dora"},
		{table.Userinfo, "*", "not found"},
		{table.Userinfo, "dora)(uid=*", "not found"},
		{table.Credentials, "dora", "dora:$6$hash"},
		{table.Credentials, "nopass", "error"},
		{table.Credentials, "\xff", "not found"},
		{table.Mailaddr, "dora@ldap.test", "yes"},
		{table.Mailaddr, "d*@ldap.test", "no"},
		{table.Mailaddrmap, "dora", "dora@ldap.test, dora@second.test"},
		{table.Alias, "root", "error"},
	}
	for _, tt := range tests {
		if got := tabletest.Answer(t, tab, tt.service, tt.key); got != tt.want {
			t.Errorf("%s %s: got %q, want %q", tt.service, tt.key, got, tt.want)
		}
	}
}

func TestMistakes(t *testing.T) {
	const url = "url ldapi://%2Fnowhere\n"
	tests := map[string]struct{ conf, want string }{
		"no url":     {aliasConf, "url"},
		"scheme":     {"url http://x\n" + aliasConf, "none of ldap"},
		"no filter":  {url, "there is no filter"},
		"bad filter": {url + "alias_filter (uid=%s\nalias_attributes uid", "alias_filter"},
		"no key":     {url + "alias_filter (uid=x)\nalias_attributes uid", "no placeholder"},
		"attributes": {url + "credentials_filter (uid=%s)\ncredentials_attributes uid", "1 attributes instead of 2"},
		"CA file":    {"url ldaps://x\nca_file /nowhere\n" + aliasConf, "ca_file"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if status, said := tabletest.Run(t, tt.conf+"\n"); status == 0 || !strings.Contains(said, tt.want) {
				t.Errorf("got status %d, %q, want %q", status, said, tt.want)
			}
		})
	}
}

// FuzzFilter: whatever the key, a filter keeps its form, and the key is one
// value in it.
func FuzzFilter(f *testing.F) {
	for _, key := range []string{"dora", "*", "a)(b=c", `\`, `\2a`, "\x00", "\xff", "ü"} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		p, err := ldap.CompileFilter(filter("(&(a=b)(uid=%s))", key))
		if err != nil {
			t.Fatalf("%q: %v", key, err)
		}
		if len(p.Children) != 2 || len(p.Children[1].Children) != 2 {
			t.Fatalf("%q: the filter has another form", key)
		}
		if got := p.Children[1].Children[1].Data.String(); got != key {
			t.Fatalf("got %q, want %q", got, key)
		}
	})
}
