// The language of 5.3 to 6.3: table and accept. The rest of its statements are
// those of modern.y. modernize.go translates the tree.

%{
package parser
%}

%union {
	tok  *token
	toks []*token
	opt  *option
	opts []*option
	tab  *tableExpr
	vals *valueList
	node node
	how  *oldAction
	flag bool
}

%token <tok> aNL aSTRING aNUMBER aARROW
%token <tok> aACCEPT aALIAS aALL aANY aAS aAUTH aAUTHOPTIONAL aAUTHENTICATED aBACKUP
%token <tok> aBOUNCEWARN aCA aCERT aCERTIFICATE aCIPHERS aCOMPRESSION aDELIVER aDHE
%token <tok> aDHPARAMS aDOMAIN aENABLE aENCRYPTION aENQUEUER aEXPIRE aFILTER aFOR
%token <tok> aFORWARDONLY aFROM aHELO aHOSTNAME aHOSTNAMES aINET4 aINET6 aKEY aLIMIT
%token <tok> aLISTEN aLMTP aLOCAL aMAILDIR aMASKSOURCE aMASKSRC aMASQUERADE
%token <tok> aMAXMESSAGESIZE aMAXMTADEFERRED aMBOX aMDA aMTA aNODSN aON aPKI aPORT
%token <tok> aPROTOCOLS aPROXYV2 aQUEUE aRCPTTO aRECEIVEDAUTH aRECIPIENT aREJECT aRELAY
%token <tok> aSCHEDULER aSECURE aSENDER aSENDERS aSESSION aSMTPS aSOCKET aSOURCE aSSL
%token <tok> aSUBADDR aTAG aTAGGED aTLS aTLSREQUIRE aTO aTTL aUSERBASE aVERIFY aVIA
%token <tok> aVIRTUAL

%type <node> stmt rule listen
%type <toks> delays names limits numbers
%type <tok>  port cert
%type <opt>  decision lookup ending ifopt sockopt filteropt common relayopt viaopt pkiopt
%type <opts> decisions lookups endings ifopts sockopts relayopts viaopts pkiopts
%type <tab>  tables opt_tables
%type <vals> values strings pairs
%type <how>  what
%type <flag> not

%start line

%%

line:
	stmt aNL { accepted(acceptlex, $1) }
	;

stmt:
	rule
	| listen
	| aBOUNCEWARN                   { $$ = setting("bounce-warn") }
	| aBOUNCEWARN delays            { $$ = setting("bounce-warn", $2...) }
	| aSUBADDR aSTRING              { $$ = setting("subaddressing-delimiter", $2) }
	| aQUEUE aCOMPRESSION           { $$ = setting("queue compression") }
	| aQUEUE aCOMPRESSION aSTRING   { $$ = setting("queue compression") }
	| aQUEUE aENCRYPTION            { $$ = setting("queue encryption") }
	| aQUEUE aENCRYPTION aSTRING    { $$ = setting("queue encryption", $3) }
	| aQUEUE aENCRYPTION aKEY aSTRING { $$ = setting("queue encryption", $4) }
	| aQUEUE aTTL aSTRING           { $$ = setting("queue ttl", $3) }
	| aEXPIRE aSTRING               { $$ = setting("expire", $2) }
	| aMAXMESSAGESIZE aSTRING       { $$ = setting("max-message-size", $2) }
	| aMAXMESSAGESIZE aNUMBER       { $$ = setting("max-message-size", $2) }
	| aMAXMTADEFERRED aNUMBER       { $$ = setting("max-mta-deferred", $2) }
	| aCIPHERS aSTRING              { $$ = setting("ciphers", $2) }
	| aLIMIT aSESSION numbers       { $$ = limits("limit session", nil, $3) }
	| aLIMIT aMDA numbers           { $$ = limits("limit mda", nil, $3) }
	| aLIMIT aMTA limits            { $$ = limits("limit mta", nil, $3) }
	| aLIMIT aMTA aFOR aDOMAIN aSTRING limits { $$ = limits("limit mta", $5, $6) }
	| aLIMIT aSCHEDULER numbers     { $$ = limits("limit scheduler", nil, $3) }
	| aPKI aSTRING pkiopts          { $$ = &pkiStmt{name: $2, opts: $3} }
	| aCA aSTRING cert aSTRING      { $$ = &caStmt{name: $2, cert: $4} }
	;

delays:
	aSTRING                         { $$ = []*token{$1} }
	| delays ',' aSTRING            { $$ = append($1, $3) }
	;

limits:
	/* none */                      { $$ = nil }
	| limits aINET4                 { $$ = append($1, $2) }
	| limits aINET6                 { $$ = append($1, $2) }
	| limits aSTRING aNUMBER        { $$ = append($1, $2, $3) }
	;

numbers:
	/* none */                      { $$ = nil }
	| numbers aSTRING aNUMBER       { $$ = append($1, $2, $3) }
	;

cert: aCERT | aCERTIFICATE ;

pkiopts:
	/* none */                      { $$ = nil }
	| pkiopts pkiopt                { $$ = append($1, $2) }
	;

pkiopt:
	cert aSTRING                    { $$ = opt($1, $2); $$.key = "cert" }
	| aKEY aSTRING                  { $$ = opt($1, $2) }
	| aDHE aSTRING                  { $$ = opt($1, $2) }
	| aCA aSTRING                   { $$ = opt($1, $2) }
	| aDHPARAMS aSTRING             { $$ = opt($1, $2) }
	;

nls:
	/* none */
	| nls aNL
	;

values:
	nls strings nls                 { $$ = $2 }
	| nls pairs nls                 { $$ = $2 }
	;

strings:
	aSTRING                         { $$ = newValues($1) }
	| strings nls aSTRING           { $$ = $1.add($3) }
	| strings ',' nls aSTRING       { $$ = $1.add($4) }
	;

pairs:
	aSTRING eq aSTRING              { $$ = newPairs($1, $3) }
	| pairs nls aSTRING eq aSTRING  { $$ = $1.addPair($3, $5) }
	| pairs ',' nls aSTRING eq aSTRING { $$ = $1.addPair($4, $6) }
	;

eq: '=' | aARROW ;

tables:
	aSTRING                         { $$ = &tableExpr{pos: $1.pos, one: $1} }
	| '{' values '}'                { $$ = &tableExpr{pos: $2.pos(), values: $2} }
	| '<' aSTRING '>'               { $$ = &tableExpr{pos: $2.pos, ref: $2} }
	;

opt_tables:
	/* none */                      { $$ = nil }
	| tables
	;

names:
	aSTRING                         { $$ = []*token{$1} }
	| names nls aSTRING             { $$ = append($1, $3) }
	| names ',' nls aSTRING         { $$ = append($1, $4) }
	;

filteropt:
	aFILTER aSTRING                 { $$ = opt($1, $2) }
	| aFILTER '{' nls names nls '}' { $$ = &option{pos: $1.pos, key: $1.text, list: $4} }
	;

listen:
	aLISTEN aON aSOCKET sockopts    { $$ = &listenStmt{on: $3, socket: true, opts: $4} }
	| aLISTEN aON aENQUEUER sockopts { $$ = &listenStmt{on: $3, socket: true, opts: $4} }
	| aLISTEN aON aSTRING ifopts    { $$ = &listenStmt{on: $3, opts: $4} }
	;

sockopts:
	/* none */                      { $$ = nil }
	| sockopts sockopt              { $$ = append($1, $2) }
	;

sockopt:
	filteropt
	| aMASKSOURCE                   { $$ = opt($1, nil) }
	| aMASKSRC                      { $$ = opt($1, nil) }
	| aNODSN                        { $$ = opt($1, nil) }
	| aTAG aSTRING                  { $$ = opt($1, $2) }
	;

ifopts:
	/* none */                      { $$ = nil }
	| ifopts ifopt                  { $$ = append($1, $2) }
	;

ifopt:
	filteropt
	| aINET4                        { $$ = opt($1, nil) }
	| aINET6                        { $$ = opt($1, nil) }
	| aPORT port                    { $$ = opt($1, $2) }
	| aTLS                          { $$ = opt($1, nil) }
	| aTLSREQUIRE                   { $$ = opt($1, nil) }
	| aTLSREQUIRE aVERIFY           { $$ = optSub($1, $2) }
	| aSMTPS                        { $$ = opt($1, nil) }
	| aSMTPS aVERIFY                { $$ = optSub($1, $2) }
	| aSECURE                       { $$ = opt($1, nil) }
	| aSSL                          { $$ = opt($1, nil) }
	| aCERTIFICATE aSTRING          { $$ = opt($1, $2) }
	| aPKI aSTRING                  { $$ = opt($1, $2) }
	| aCA aSTRING                   { $$ = opt($1, $2) }
	| aCIPHERS aSTRING              { $$ = opt($1, $2) }
	| aPROTOCOLS aSTRING            { $$ = opt($1, $2) }
	| aENABLE aAUTH                 { $$ = opt($1, nil) }
	| aAUTH opt_tables              { $$ = optTable($1, $2) }
	| aAUTHOPTIONAL opt_tables      { $$ = optTable($1, $2) }
	| aTAG aSTRING                  { $$ = opt($1, $2) }
	| aHOSTNAME aSTRING             { $$ = opt($1, $2) }
	| aHOSTNAMES tables             { $$ = optTable($1, $2) }
	| aSENDERS tables               { $$ = optTable($1, $2) }
	| aSENDERS tables aMASQUERADE   { $$ = optTable($1, $2); $$.sub = $3.text }
	| aMASKSOURCE                   { $$ = opt($1, nil) }
	| aMASKSRC                      { $$ = opt($1, nil) }
	| aRECEIVEDAUTH                 { $$ = opt($1, nil) }
	| aNODSN                        { $$ = opt($1, nil) }
	| aPROXYV2                      { $$ = opt($1, nil) }
	;

port: aSTRING | aNUMBER | aSMTPS ;

rule:
	aACCEPT decisions lookups what endings
	                                { $$ = &ruleStmt{form: acceptForm, opts: append($2, $3...), how: $4, endings: $5} }
	| aREJECT decisions             { $$ = &ruleStmt{form: acceptForm, reject: true, opts: $2} }
	;

decisions:
	/* none */                      { $$ = nil }
	| decisions decision            { $$ = append($1, $2) }
	;

not:
	/* none */                      { $$ = false }
	| '!'                           { $$ = true }
	;

decision:
	aTAGGED not aSTRING             { $$ = opt($1, $3); $$.not = $2 }
	| aAUTHENTICATED                { $$ = opt($1, nil) }
	| '!' aAUTHENTICATED            { $$ = opt($2, nil); $$.not = true }
	| aFROM not aANY                { $$ = optMatch($2, $1, $3, false, nil) }
	| aFROM not aALL                { $$ = optMatch($2, $1, $3, false, nil) }
	| aFROM not aLOCAL              { $$ = optMatch($2, $1, $3, false, nil) }
	| aFROM not aSOURCE tables      { $$ = optMatch($2, $1, $3, false, $4) }
	| aFROM not tables              { $$ = optMatch($2, $1, nil, false, $3); $$.sub = "source" }
	| aSENDER not tables            { $$ = optMatch($2, $1, nil, false, $3) }
	| aRECIPIENT not tables         { $$ = optMatch($2, $1, nil, false, $3) }
	| aFOR not aANY                 { $$ = optMatch($2, $1, $3, false, nil) }
	| aFOR not aALL                 { $$ = optMatch($2, $1, $3, false, nil) }
	| aFOR not aLOCAL               { $$ = optMatch($2, $1, $3, false, nil) }
	| aFOR not aDOMAIN tables       { $$ = optMatch($2, $1, $3, false, $4) }
	;

lookups:
	/* none */                      { $$ = nil }
	| lookups lookup                { $$ = append($1, $2) }
	;

lookup:
	aALIAS tables                   { $$ = optTable($1, $2) }
	| aVIRTUAL tables               { $$ = optTable($1, $2) }
	| aUSERBASE tables              { $$ = optTable($1, $2) }
	;

what:
	/* none */                      { $$ = nil }
	| aDELIVER aTO aMBOX            { $$ = newOld($3, nil, nil) }
	| aDELIVER aTO aMAILDIR         { $$ = newOld($3, nil, nil) }
	| aDELIVER aTO aMAILDIR aSTRING { $$ = newOld($3, $4, nil) }
	| aDELIVER aTO aMDA aSTRING     { $$ = newOld($3, $4, nil) }
	| aDELIVER aTO aMDA aSTRING aAS aSTRING { $$ = newOld($3, $4, one(opt($5, $6))) }
	| aDELIVER aTO aLMTP aSTRING    { $$ = newOld($3, $4, nil) }
	| aDELIVER aTO aLMTP aSTRING aAS aSTRING { $$ = newOld($3, $4, one(opt($5, $6))) }
	| aDELIVER aTO aLMTP aSTRING aRCPTTO { $$ = newOld($3, $4, one(opt($5, nil))) }
	| aDELIVER aTO aLMTP aSTRING aRCPTTO aAS aSTRING
	                                { $$ = newOld($3, $4, append(one(opt($5, nil)), opt($6, $7))) }
	| aRELAY relayopts              { $$ = newOld($1, nil, $2) }
	| aRELAY aVIA aSTRING viaopts   { $$ = newOld($2, $3, $4) }
	;

common:
	aAS aSTRING                     { $$ = opt($1, $2) }
	| aSOURCE tables                { $$ = optTable($1, $2) }
	| aHOSTNAME aSTRING             { $$ = opt($1, $2) }
	| aHOSTNAMES tables             { $$ = optTable($1, $2) }
	| aHELO tables                  { $$ = optTable($1, $2) }
	| aPKI aSTRING                  { $$ = opt($1, $2) }
	| aCA aSTRING                   { $$ = opt($1, $2) }
	| aCERTIFICATE aSTRING          { $$ = opt($1, $2) }
	;

relayopts:
	/* none */                      { $$ = nil }
	| relayopts relayopt            { $$ = append($1, $2) }
	;

relayopt:
	common
	| aBACKUP                       { $$ = opt($1, nil) }
	| aBACKUP aSTRING               { $$ = opt($1, $2) }
	| aTLS                          { $$ = opt($1, nil) }
	| aTLS aVERIFY                  { $$ = optSub($1, $2) }
	;

viaopts:
	/* none */                      { $$ = nil }
	| viaopts viaopt                { $$ = append($1, $2) }
	;

viaopt:
	common
	| aAUTH tables                  { $$ = optTable($1, $2) }
	| aVERIFY                       { $$ = opt($1, nil) }
	;

endings:
	/* none */                      { $$ = nil }
	| endings ending                { $$ = append($1, $2) }
	;

ending:
	aEXPIRE aSTRING                 { $$ = opt($1, $2) }
	| aFORWARDONLY                  { $$ = opt($1, nil) }
	;
